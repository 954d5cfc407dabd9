/** The open study: its planes, position, window and overlay. */

import { ask } from "./api.js";
import { byId, el, say, short } from "./dom.js";
import { Pane } from "./pane.js";
import { Pictures } from "./pictures.js";
import { Readout } from "./readout.js";

const AXES = { axial: 0, coronal: 1, sagittal: 2, frame: 0 };
const TAG_NAMES = { original: "Prediction", final: "Final" };
const PRESETS = { "CT soft tissue": [40, 400], "CT lung": [-600, 1500], "CT bone": [400, 1800] };
const CT_BELOW = -500;

export class Viewer {
  /** @param {() => void} onLabel called when another label is shown */
  constructor(onLabel) {
    this.onLabel = onLabel;
    this.cache = new Pictures();
    this.readout = new Readout(this);
    this.panes = {};
    this.study = this.facts = this.label = null;
    this.overlay = { on: true, opacity: 0.35, hidden: new Set() };
    this.lines = true;
    this.assumed = { model: "", names: {} };
    this.opening = 0;
  }

  get tag() {
    return this.label?.tag ?? null;
  }

  /** Open a study of the list, with its prediction if there is one, else its final label. */
  async open(study, tag) {
    this.stop();
    const mine = ++this.opening;
    const facts = await ask("/view/study", { query: { image: study.name } });
    if (mine !== this.opening) return;
    const same = this.study?.name === study.name;
    Object.assign(this, { study, facts });
    if (!same) this.reset();
    const tags = Object.keys(study.labels);
    const first = ["original", "final"].find((one) => tags.includes(one)) ?? tags[0];
    await this.show(tag !== undefined && tags.includes(tag) ? tag : first ?? null, !same);
  }

  /** Begin anew: planes, position and window of the study. */
  reset() {
    const { planes } = this.facts;
    const root = byId("panes");
    Object.values(this.panes).forEach((pane) => pane.close());
    root.replaceChildren();
    root.className = this.facts.kind;
    this.cache.clear();
    this.panes = {};
    this.overlay.hidden.clear();
    this.window = { ...this.facts.window };
    for (const [name, plane] of Object.entries(planes)) {
      this.panes[name] = new Pane(name, plane, this);
      root.append(this.panes[name].root);
    }
    const counts = planes.frame ? [planes.frame.count, 1, 1]
      : ["axial", "coronal", "sagittal"].map((name) => planes[name].count);
    this.counts = counts;
    this.position = planes.frame ? [0, 0, 0] : counts.map((count) => Math.floor(count / 2));
    this.active = Object.keys(planes)[0];
    this.showPresets();
    this.showWindow();
    this.readout.show(null);
  }

  /** Show the label of a tag, or none; `seek` goes to where most of it is. */
  async show(tag, seek = false) {
    const study = this.study;
    this.label = null;
    this.showTags();
    if (tag) {
      const query = { image: study.name, tag };
      try {
        const label = await ask("/view/label", { query });
        if (study !== this.study) return;
        this.label = { tag, ...label };
      } catch (error) {
        this.failed(error);
      }
    }
    if (seek && this.label) this.seek(this.largest());
    this.showTags();
    this.onLabel();
    this.update();
  }

  largest() {
    return this.label.counts.reduce((a, b) => (a && a.voxels >= b.voxels ? a : b), null);
  }

  /** Go to where most voxels of a value are. */
  seek(entry) {
    if (entry) this.position = this.facts.kind === "video" ? [entry.at[0], 0, 0] : [...entry.at];
  }

  indexOf(name) {
    return this.position[AXES[name]];
  }

  profileOf(name) {
    return this.label?.profile[AXES[name]];
  }

  /** Row and column of the point in a plane; heads are up, so rows count from there. */
  pointIn(name) {
    const [z, y, x] = this.position;
    if (name === "axial") return [y, x];
    return [this.counts[0] - 1 - z, name === "coronal" ? x : y];
  }

  pointAt(name, row, column) {
    if (name === "frame") return;
    const [z, y, x] = this.position;
    const up = this.counts[0] - 1 - row;
    if (name === "axial") this.position = [z, row, column];
    else this.position = name === "coronal" ? [up, y, column] : [up, column, x];
    this.update();
  }

  /** Move a plane to an index, as far as there are any. */
  go(name, index) {
    const axis = AXES[name];
    const wanted = Math.max(0, Math.min(this.counts[axis] - 1, index));
    if (wanted === this.position[axis]) return;
    this.position[axis] = wanted;
    this.panes[name].update();
    for (const pane of Object.values(this.panes)) if (pane.name !== name) pane.draw();
  }

  activate(name) {
    this.active = name;
  }

  focus(number) {
    Object.values(this.panes)[number]?.root.focus();
  }

  enlarge(name) {
    const root = byId("panes");
    root.dataset.only = root.dataset.only === name ? "" : name;
  }

  fit() {
    byId("panes").dataset.only = "";
    for (const pane of Object.values(this.panes)) pane.zoomBy(0);
  }

  update() {
    for (const pane of Object.values(this.panes)) pane.update();
  }

  redraw() {
    for (const pane of Object.values(this.panes)) pane.draw();
  }

  /** Image and label of a plane, of one and the same index. */
  async pictures(plane, index) {
    const { study, label, window: { low, high } } = this;
    const image = { image: study.name, plane, index };
    const [grey, labels] = await Promise.all([
      this.cache.get("/view/image.png", { ...image, low: short7(low), high: short7(high) }),
      label && this.cache.get("/view/label.png",
        { ...image, tag: label.tag, hidden: [...this.overlay.hidden] }, label.version),
    ]);
    return { image: grey, labels, index, tag: label?.tag };
  }

  /** Fetch the next planes beforehand. */
  ahead(plane, index, direction) {
    const count = this.counts[AXES[plane]];
    for (let step = 1; step <= (this.playing ? 4 : 2); step += 1) {
      const next = index + step * direction;
      if (next >= 0 && next < count) this.pictures(plane, next).catch(() => {});
    }
  }

  failed(error) {
    if (error.status !== 401) say(`${this.study?.name}: ${error.message}`, "error");
  }

  /** Play a video from here, again and again, or stop. */
  play() {
    if (this.playing) return this.stop();
    if (this.facts?.kind !== "video") return;
    this.playing = true;
    byId("play").textContent = "Pause";
    const step = async () => {
      if (!this.playing) return;
      const began = performance.now();
      this.position[0] = (this.position[0] + 1) % this.counts[0];
      await this.panes.frame.update();
      const rest = 1000 / this.facts.fps - (performance.now() - began);
      this.timer = setTimeout(step, Math.max(0, rest));
    };
    step();
  }

  stop() {
    this.playing = false;
    clearTimeout(this.timer);
    byId("play").textContent = "Play";
  }

  showTags() {
    const tags = Object.keys(this.study.labels);
    tags.sort((a, b) => (a in TAG_NAMES ? 0 : 1) - (b in TAG_NAMES ? 0 : 1) || (a < b ? 1 : -1));
    byId("tags").replaceChildren(...[...tags, null].map((tag) => {
      const button = el("button", { textContent: tag ? TAG_NAMES[tag] ?? tag : "None" });
      button.ariaPressed = String(tag === this.tag);
      button.addEventListener("click", () => this.show(tag));
      return button;
    }));
    byId("play").hidden = this.facts.kind !== "video";
  }

  showPresets() {
    const { least, low, high, most } = this.facts.window;
    const centred = ([centre, width]) => [centre - width / 2, centre + width / 2];
    this.presets = { Auto: [low, high], "Full range": [least, Math.max(most, least + 1)] };
    if (least < CT_BELOW) {
      for (const [name, of] of Object.entries(PRESETS)) this.presets[name] = centred(of);
    }
    byId("preset").replaceChildren(
      ...Object.keys(this.presets).map((name) => el("option", { textContent: name })),
      el("option", { textContent: "Own", hidden: true }));
  }

  choosePreset(name) {
    if (!this.presets?.[name]) return;
    const [low, high] = this.presets[name];
    this.setWindow(low, high, name);
  }

  setWindow(low, high, name = "Own") {
    if (!(high > low)) return;
    Object.assign(this.window, { low, high });
    this.showWindow(name);
    this.update();
  }

  dragWindow(dx, dy) {
    const { low, high, least, most } = this.window;
    const speed = (most - least || 1) / 600;
    const width = Math.max((most - least) / 1000 || 1e-6, high - low + dx * speed);
    const centre = (low + high) / 2 + dy * speed;
    this.setWindow(centre - width / 2, centre + width / 2);
  }

  showWindow(name = "Auto") {
    const { low, high } = this.window;
    byId("centre").value = short((low + high) / 2);
    byId("width").value = short(high - low);
    byId("preset").value = name;
  }

  labelName(entry) {
    return entry.name ?? this.assumed.names[entry.value] ?? `label ${entry.value}`;
  }

  /** Take the names of a model for values without any, if it knows all that there are. */
  assume(model, labels) {
    const names = Object.fromEntries(Object.entries(labels).map(([name, value]) => [value, name]));
    const counts = this.label?.counts ?? [];
    const fits = counts.some(({ name }) => !name) && counts.every(({ value }) => value in names);
    this.assumed = fits ? { model, names } : { model: "", names: {} };
  }

  toggleLines() {
    this.lines = !this.lines;
    this.redraw();
  }
}

function short7(number) {
  return Number(number.toPrecision(7));
}
