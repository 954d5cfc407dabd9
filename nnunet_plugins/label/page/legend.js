/** The labels of what is shown: colour, name, size; each can be hidden and gone to. */

import { byId, el } from "./dom.js";

export function showLegend(viewer) {
  const root = byId("legend");
  const { label, facts } = viewer;
  if (!label) {
    root.replaceChildren(el("p", { className: "faint" },
      viewer.study ? "No label is shown." : "No study is open."));
    return;
  }
  const rows = label.counts.map((entry) => row(viewer, entry));
  const unit = facts.kind === "video" ? ["pixels", "of all"] : ["voxels", "mL"];
  const head = el("tr", {}, el("th", {}), el("th", {}, "label"),
    ...unit.map((name) => el("th", {}, name)));
  root.replaceChildren(
    rows.length ? el("table", {}, el("thead", {}, head), el("tbody", {}, rows))
      : el("p", { className: "warn" }, "This label is empty: nothing was found."),
    el("p", { className: "faint" }, about(label, viewer.assumed.model)));
}

function row(viewer, entry) {
  const { hidden } = viewer.overlay;
  const name = viewer.labelName(entry);
  const box = el("input", { type: "checkbox", checked: !hidden.has(entry.value),
    ariaLabel: `Show ${name}` });
  box.addEventListener("change", () => {
    if (box.checked) hidden.delete(entry.value);
    else hidden.add(entry.value);
    viewer.update();
  });
  const swatch = el("span", { className: "swatch", style: { background: entry.colour } });
  const there = el("button", { className: "link", title: "Go to where most of it is" }, swatch, name);
  there.addEventListener("click", () => {
    viewer.seek(entry);
    viewer.update();
  });
  return el("tr", { data: { value: entry.value } }, el("td", {}, box), el("td", {}, there),
    el("td", { className: "number" }, entry.voxels.toLocaleString("en")),
    el("td", { className: "number" }, size(viewer, entry)));
}

/** Millilitres, or the share of a video's pixels. */
function size(viewer, entry) {
  if (viewer.facts.kind === "volume") return (entry.voxels * viewer.label.millilitres).toFixed(2);
  const { count, rows, columns } = viewer.facts.planes.frame;
  return `${((100 * entry.voxels) / (count * rows * columns)).toFixed(1)} %`;
}

function about(label, assumed) {
  const parts = [];
  if (label.model) parts.push(`By ${label.model}`);
  if (label.uncertainty !== undefined) parts.push(`uncertainty ${label.uncertainty.toFixed(2)}`);
  if (label.accepted) parts.push("accepted here");
  if (assumed) parts.push(`names as ${assumed} has them`);
  const text = parts.join(", ");
  return text && text[0].toUpperCase() + text.slice(1);
}
