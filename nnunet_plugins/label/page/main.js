/** The page: what it knows, and which element does what. */

import { makeActions } from "./actions.js";
import { ask, forgetToken, setToken, takeToken } from "./api.js";
import { agree, attempt, byId, el, say } from "./dom.js";
import { fetchJobs, isActive, showJobs } from "./jobs.js";
import { showLegend } from "./legend.js";
import { openCard, showModels } from "./models.js";
import { showStudies } from "./studies.js";
import { Viewer } from "./viewer.js";

const SOON = 2000;
const LATER = 10000;
const KEYS = [
  ["1 2 3", "axial, coronal, sagittal plane"], ["↑ ↓", "through the plane; Page keys by ten"],
  ["Space", "play a video"], ["wheel", "through the plane; with Ctrl it zooms"],
  ["left button", "the point where the planes meet"], ["right button", "window: width and centre"],
  ["Shift + drag", "move a zoomed plane"], ["+ − F", "zoom, and back"],
  ["double click", "one plane alone"], ["O X", "overlay and lines, on and off"], ["[ ]", "opacity"],
  ["W", "window back to auto"], ["S", "segment"], ["Shift + A", "accept"],
  ["Shift + R", "reject"], ["D", "save the mask"], ["N", "next study to label"], ["J K", "down and up in the list"],
];

class Page {
  constructor() {
    this.studies = [];
    this.busy = new Map();
    this.jobs = {};
    this.viewer = new Viewer(() => this.showOpen());
    this.act = makeActions(this);
  }

  async start() {
    this.colours = await ask("/view/colours");
    await this.refresh();
    await this.watch();
    if (!this.viewer.study && this.studies.length) await this.open(this.studies[0].name);
  }

  /** Fetch studies and models, and show them. */
  async refresh() {
    [this.info, this.studies] = await Promise.all([ask("/info/"), ask("/view/studies")]);
    const { running, waiting } = this.info.queue;
    byId("queue").textContent = running ? `computing, ${waiting} waiting` : "";
    showModels(this.info, this.colours, this.act);
    this.showList();
    this.showOpen();
  }

  /** Look at the jobs now and from time to time; when one ends, all else may have changed. */
  async watch() {
    clearTimeout(this.timer);
    const before = Object.values(this.jobs).filter(isActive).length;
    await attempt(async () => {
      this.jobs = await fetchJobs();
      showJobs(this.jobs, this.act.stop);
      if (before > Object.values(this.jobs).filter(isActive).length) await this.refresh();
    });
    const active = Object.values(this.jobs).some(isActive);
    this.timer = setTimeout(() => this.watch(), active ? SOON : LATER);
  }

  showList() {
    showStudies(this.studies, this.viewer.study?.name, this.busy, async (study) => {
      await this.open(study.name);
      this.viewer.focus(0);
    });
  }

  async open(name, tag) {
    const study = this.studies.find((one) => one.name === name);
    if (!study) return say(`There is no study ${name} any more.`, "error");
    await attempt(() => this.viewer.open(study, tag), name);
    this.showList();
    this.showOpen();
  }

  mark(name, what) {
    if (what) this.busy.set(name, what);
    else this.busy.delete(name);
    this.showList();
    this.showOpen();
  }

  choosing(on) {
    byId("next").disabled = on;
    byId("next").textContent = on ? "Looking for it …" : "Next to label";
  }

  /** Everything that depends on the open study and its label. */
  showOpen() {
    const { viewer } = this;
    const { study, facts } = viewer;
    this.showChoice();
    byId("study-name").textContent = study?.name ?? "No study is open";
    byId("study-facts").textContent = facts ? told(facts) : "";
    const busy = study ? this.busy.get(study.name) : null;
    byId("segment").disabled = !study || Boolean(busy) || !byId("model").value;
    byId("segment").textContent = busy ? "Segmenting …" : "Segment";
    const predicted = viewer.tag === "original" && !busy;
    byId("accept").disabled = byId("reject").disabled = !predicted;
    byId("verdict").textContent = verdict(viewer);
    byId("save").hidden = !viewer.label;
    byId("save-seg").hidden = !facts?.dicom;
    const model = byId("model").value;
    viewer.assume(model, this.info?.models[model]?.labels ?? {});
    showLegend(viewer);
  }

  /** Models that fit the open study. */
  showChoice() {
    const select = byId("model");
    const kind = this.viewer.facts?.kind;
    const fitting = Object.entries(this.info?.models ?? {})
      .filter(([, model]) => !kind || model.kind === kind).map(([name]) => name);
    if (fitting.join("/") === [...select.options].map((option) => option.value).join("/")) return;
    select.replaceChildren(...fitting.map((name) => el("option", { value: name, textContent: name })));
    openCard(select.value);
  }
}

function told(facts) {
  if (facts.kind === "video") {
    const { count, rows, columns } = facts.planes.frame;
    return `${columns} × ${rows}, ${count} frames, ${Math.round(facts.fps)} per second`;
  }
  const [z, y, x] = facts.shape;
  return `${x} × ${y} × ${z}, ${[...facts.spacing].reverse().map((mm) => mm.toFixed(2)).join(" × ")} mm`;
}

function verdict(viewer) {
  if (!viewer.study) return "";
  if (viewer.tag === "original") return "Is this prediction right?";
  return viewer.study.labels.original ? "Show the prediction to accept or reject it." : "";
}

function listen(page) {
  const { viewer, act } = page;
  const model = () => byId("model").value;
  const on = (id, event, work) => byId(id).addEventListener(event, work);
  on("filter", "input", () => page.showList());
  on("segment", "click", () => act.segment(model()));
  on("accept", "click", act.accept);
  on("reject", "click", act.reject);
  on("save-nifti", "click", () => act.download("nifti"));
  on("save-seg", "click", () => act.download("seg"));
  on("next", "click", () => act.next(model()));
  on("model", "change", () => {
    page.showOpen();
    openCard(model());
  });
  on("reload", "click", act.reload);
  on("help", "click", showKeys);
  on("leave", "click", () => {
    forgetToken();
    location.reload();
  });
  on("preset", "change", () => viewer.choosePreset(byId("preset").value));
  for (const id of ["centre", "width"]) {
    on(id, "change", () => {
      const [centre, width] = [Number(byId("centre").value), Number(byId("width").value)];
      if (viewer.study) viewer.setWindow(centre - width / 2, centre + width / 2);
    });
  }
  on("overlay", "change", () => {
    viewer.overlay.on = byId("overlay").checked;
    viewer.redraw();
  });
  on("opacity", "input", () => {
    viewer.overlay.opacity = byId("opacity").value / 100;
    viewer.redraw();
  });
  on("play", "click", () => viewer.play());
  on("fit", "click", () => viewer.fit());
  document.addEventListener("keydown", (event) => pressed(event, page));
}

function pressed(event, page) {
  const { viewer, act } = page;
  const at = event.target;
  const typing = at.matches("select, textarea, input:not([type=range]):not([type=checkbox])");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const step = (by) => viewer.study && viewer.go(viewer.active, viewer.indexOf(viewer.active) + by);
  const onSlider = at.matches("input[type=range]");
  const far = viewer.counts ? Math.max(...viewer.counts) : 0;
  const keys = {
    1: () => viewer.focus(0), 2: () => viewer.focus(1), 3: () => viewer.focus(2),
    ArrowUp: () => step(1), ArrowDown: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    PageUp: () => step(10), PageDown: () => step(-10), Home: () => step(-far), End: () => step(far),
    o: () => byId("overlay").click(), x: () => viewer.toggleLines(), "[": () => opacity(-10), "]": () => opacity(10),
    w: () => viewer.choosePreset("Auto"), f: () => viewer.fit(),
    "+": () => viewer.panes[viewer.active]?.zoomBy(1.25), "-": () => viewer.panes[viewer.active]?.zoomBy(0.8),
    s: () => byId("segment").click(), n: () => byId("next").click(),
    d: () => byId("save-nifti").click(),
    A: () => byId("accept").click(), R: () => byId("reject").click(),
    j: () => neighbour(page, 1), k: () => neighbour(page, -1), "?": showKeys,
    " ": at.matches("button, summary, input[type=checkbox]") ? null : () => viewer.play(),
  };
  const act_ = keys[event.key];
  if (!act_ || (onSlider && /^(Arrow|Page|Home|End)/.test(event.key))) return;
  if (/^(Arrow|Page|Home|End)/.test(event.key) && at.closest("aside, pre")) return;
  event.preventDefault();
  act_();
}

function opacity(by) {
  const slider = byId("opacity");
  slider.value = Number(slider.value) + by;
  slider.dispatchEvent(new Event("input"));
}

function neighbour(page, by) {
  const shown = [...document.querySelectorAll(".study")].map((button) => button.dataset.name);
  const place = shown.indexOf(page.viewer.study?.name) + by;
  if (place >= 0 && place < shown.length) page.open(shown[place]);
}

function showKeys() {
  const rows = KEYS.map(([key, what]) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, what)));
  agree("Keys and mouse", el("table", { className: "keys" }, el("tbody", {}, rows)), null);
}

/** Ask for the token until the server takes it. */
function signIn(page) {
  const dialog = byId("sign-in");
  document.addEventListener("token-needed", () => {
    if (!dialog.open) dialog.showModal();
  });
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setToken(byId("token").value);
    byId("sign-in-error").textContent = "";
    try {
      await page.start();
      byId("token").value = "";
      dialog.close();
    } catch (error) {
      byId("sign-in-error").textContent = error.status === 401
        ? "The server does not know this token." : error.message;
    }
  });
}

takeToken();
const page = new Page();
listen(page);
signIn(page);
attempt(() => page.start());
