/** One plane of a volume, or the frames of a video, with its slider. */

import { el } from "./dom.js";
import { drawLabels } from "./overlay.js";

const LETTERS = {
  axial: { top: "A", bottom: "P", left: "R", right: "L" },
  coronal: { top: "S", bottom: "I", left: "R", right: "L" },
  sagittal: { top: "S", bottom: "I", left: "A", right: "P" },
  frame: {},
};
const TITLES = { axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", frame: "Frame" };

export class Pane {
  /**
   * @param {string} name of the plane
   * @param {object} facts `count`, `rows`, `columns` and `pixel`, its height and width in mm
   * @param {object} viewer which holds position, window, overlay and pictures
   */
  constructor(name, facts, viewer) {
    Object.assign(this, { name, facts, viewer });
    this.zoom = { factor: 1, x: 0, y: 0 };
    this.shown = null;
    this.wanted = false;
    this.running = false;
    this.build();
    this.listen();
  }

  build() {
    this.canvas = el("canvas", {});
    this.caption = el("span", { className: "caption" });
    const letters = Object.entries(LETTERS[this.name]).map(([side, letter]) =>
      el("span", { className: `letter ${side}`, ariaHidden: "true" }, letter));
    this.profile = el("canvas", { className: "profile", ariaHidden: "true" });
    this.slider = el("input", {
      type: "range", min: 0, max: this.facts.count - 1, step: 1,
      ariaLabel: `${TITLES[this.name]} position`,
    });
    this.picture = el("div", { className: "picture" }, this.canvas, this.caption, letters);
    this.root = el("section", {
      className: "pane", tabIndex: 0, data: { plane: this.name },
      ariaLabel: `${TITLES[this.name]} plane, arrow keys move through it`,
    }, this.picture, el("div", { className: "track" }, this.profile, this.slider));
  }

  listen() {
    const { canvas, viewer } = this;
    this.slider.addEventListener("input", () => viewer.go(this.name, Number(this.slider.value)));
    this.root.addEventListener("focusin", () => viewer.activate(this.name));
    this.picture.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => viewer.enlarge(this.name));
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", () => (this.drag = null));
    canvas.addEventListener("pointercancel", () => (this.drag = null));
    canvas.addEventListener("pointerleave", () => viewer.readout.show(null));
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.picture);
  }

  close() {
    this.observer.disconnect();
    this.root.remove();
  }

  get index() {
    return this.viewer.indexOf(this.name);
  }

  /** Fetch what belongs to the position and draw it; while one is fetched, only the last waits. */
  async update() {
    this.slider.value = this.index;
    this.slider.ariaValueText = `${this.index + 1} of ${this.facts.count}`;
    this.wanted = true;
    if (this.running) return;
    this.running = true;
    try {
      while (this.wanted) {
        this.wanted = false;
        const found = await this.viewer.pictures(this.name, this.index);
        if (!this.root.isConnected) return;
        this.direction = Math.sign(found.index - (this.shown?.index ?? found.index));
        this.shown = found;
        this.draw();
        this.viewer.readout.again(this);
      }
      this.viewer.ahead(this.name, this.index, this.direction || 1);
    } catch (error) {
      this.viewer.failed(error);
    } finally {
      this.running = false;
    }
  }

  /** Where the plane lies on its canvas, in the canvas's pixels. */
  place() {
    const { rows, columns, pixel } = this.facts;
    const tall = rows * pixel[0];
    const wide = columns * pixel[1];
    const { width, height } = this.canvas;
    const scale = Math.min(width / wide, height / tall) * this.zoom.factor;
    return {
      x: (width - wide * scale) / 2 + this.zoom.x * width,
      y: (height - tall * scale) / 2 + this.zoom.y * height,
      width: wide * scale,
      height: tall * scale,
    };
  }

  draw() {
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.picture.clientWidth * ratio);
    const height = Math.round(this.picture.clientHeight * ratio);
    if (!width || !height || !this.shown) return;
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    const context = this.canvas.getContext("2d");
    const { image, labels, index } = this.shown;
    const { overlay } = this.viewer;
    const place = this.place();
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, place.x, place.y, place.width, place.height);
    if (labels && overlay.on) {
      drawLabels(context, labels, place, overlay.opacity, Math.max(1, Math.round(1.5 * ratio)));
    }
    if (this.name !== "frame" && this.viewer.lines) this.cross(context, place, ratio);
    this.caption.textContent = `${TITLES[this.name]} ${index + 1} / ${this.facts.count}`;
    Object.assign(this.root.dataset, { index, label: labels && overlay.on ? this.shown.tag : "" });
    this.drawProfile(ratio);
  }

  /** Thin lines where the other planes are, open around the point itself. */
  cross(context, place, ratio) {
    const [row, column] = this.viewer.pointIn(this.name);
    const x = place.x + ((column + 0.5) / this.facts.columns) * place.width;
    const y = place.y + ((row + 0.5) / this.facts.rows) * place.height;
    const gap = 10 * ratio;
    context.strokeStyle = "rgba(120, 190, 255, 0.55)";
    context.lineWidth = ratio;
    context.beginPath();
    for (const [from, to] of [[0, x - gap], [x + gap, this.canvas.width]]) {
      context.moveTo(from, y);
      context.lineTo(Math.max(from, to), y);
    }
    for (const [from, to] of [[0, y - gap], [y + gap, this.canvas.height]]) {
      context.moveTo(x, from);
      context.lineTo(x, Math.max(from, to));
    }
    context.stroke();
  }

  /** How much of the label each plane holds, over the slider. */
  drawProfile(ratio) {
    const { profile } = this;
    const counts = this.viewer.profileOf(this.name);
    profile.width = Math.round(profile.clientWidth * ratio);
    profile.height = Math.round(profile.clientHeight * ratio);
    if (!counts || !profile.width) return;
    const context = profile.getContext("2d");
    const most = Math.max(1, ...counts);
    const step = profile.width / this.facts.count;
    context.fillStyle = "#6cb2f5";
    counts.forEach((count, index) => {
      if (!count) return;
      const high = Math.max(ratio, (count / most) * profile.height);
      context.fillRect(index * step, profile.height - high, Math.max(1, step * 0.9), high);
    });
  }

  /** Row and column under a pointer; null outside of the plane. */
  under(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    const place = this.place();
    const column = ((event.clientX - box.left) * ratio - place.x) / place.width;
    const row = ((event.clientY - box.top) * ratio - place.y) / place.height;
    if (row < 0 || row >= 1 || column < 0 || column >= 1) return null;
    return [Math.floor(row * this.facts.rows), Math.floor(column * this.facts.columns)];
  }

  wheel(event) {
    event.preventDefault();
    if (event.ctrlKey) {
      this.zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2);
      return;
    }
    this.turned = (this.turned || 0) + (event.deltaMode ? event.deltaY * 40 : event.deltaY);
    const steps = Math.trunc(this.turned / 40);
    if (steps) {
      this.turned -= steps * 40;
      this.viewer.go(this.name, this.index + Math.sign(steps));
    }
  }

  zoomBy(factor) {
    const wanted = Math.min(20, Math.max(1, this.zoom.factor * factor));
    const change = wanted / this.zoom.factor;
    this.zoom = wanted === 1
      ? { factor: 1, x: 0, y: 0 }
      : { factor: wanted, x: this.zoom.x * change, y: this.zoom.y * change };
    this.draw();
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.root.focus({ preventScroll: true });
    const pans = event.button === 1 || event.shiftKey;
    const kind = pans ? "pan" : event.button === 2 ? "window" : "point";
    if (pans) event.preventDefault();
    this.drag = { kind, x: event.clientX, y: event.clientY };
    if (kind === "point") this.point(event);
  }

  move(event) {
    const at = this.under(event);
    this.viewer.readout.show(at && this.shown ? { pane: this, row: at[0], column: at[1] } : null);
    if (!this.drag) return;
    const dx = event.clientX - this.drag.x;
    const dy = event.clientY - this.drag.y;
    Object.assign(this.drag, { x: event.clientX, y: event.clientY });
    if (this.drag.kind === "point") this.point(event);
    else if (this.drag.kind === "window") this.viewer.dragWindow(dx, dy);
    else {
      this.zoom.x += dx / this.picture.clientWidth;
      this.zoom.y += dy / this.picture.clientHeight;
      this.draw();
    }
  }

  point(event) {
    const at = this.under(event);
    if (at) this.viewer.pointAt(this.name, at[0], at[1]);
  }
}
