/** The list of studies. */

import { byId, bytes, el } from "./dom.js";

const MOST_ROWS = 400;

/**
 * @param {object[]} studies as the server lists them
 * @param {string|undefined} open name of the open one
 * @param {Map<string, string>} busy what runs on a study
 * @param {(study: object) => void} choose
 */
export function showStudies(studies, open, busy, choose) {
  const wanted = byId("filter").value.trim().toLowerCase();
  const found = studies.filter((study) => study.name.toLowerCase().includes(wanted));
  const rows = found.slice(0, MOST_ROWS).map((study) => row(study, open, busy, choose));
  if (!rows.length) rows.push(el("li", { className: "faint" }, studies.length
    ? "No study has such a name." : "There are no studies in the folder."));
  if (found.length > MOST_ROWS) rows.push(el("li", { className: "faint" },
    `${found.length - MOST_ROWS} more; search by name.`));
  const list = byId("study-list");
  const top = list.scrollTop;
  const focused = list.contains(document.activeElement) && document.activeElement.dataset.name;
  list.replaceChildren(...rows);
  list.scrollTop = top;
  if (focused) list.querySelector(`[data-name="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  const labelled = studies.filter((study) => study.labels.final).length;
  byId("summary").textContent = `${labelled} of ${studies.length} studies have a final label`;
}

function row(study, open, busy, choose) {
  const tags = Object.keys(study.labels);
  const chips = tags.map((tag) => chip(tag));
  if (busy.has(study.name)) chips.unshift(el("span", { className: "chip busy" }, busy.get(study.name)));
  if (!chips.length) chips.push(el("span", { className: "chip none" }, "no label"));
  const button = el("button", { className: "study", data: { name: study.name } },
    el("span", { className: "name" }, study.name),
    el("span", { className: "meta" }, `${study.kind === "video" ? "Video" : "3D"} · ${bytes(study.bytes)}`),
    el("span", { className: "chips" }, chips));
  if (study.name === open) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => choose(study));
  return el("li", {}, button);
}

function chip(tag) {
  const names = { final: "final", original: "prediction" };
  return el("span", { className: `chip ${tag in names ? tag : "other"}` }, names[tag] ?? tag);
}
