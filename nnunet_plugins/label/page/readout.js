/** What lies under the pointer: where it is, its value, its label. */

import { ask } from "./api.js";
import { byId } from "./dom.js";

const HINTS = {
  volume: "Wheel or arrow keys move through planes, the right button changes the window, "
    + "a double click enlarges. ? shows all keys.",
  video: "Wheel or arrow keys move through frames, Space plays. ? shows all keys.",
};
const SIDES = [["L", "R"], ["P", "A"], ["S", "I"]];

export class Readout {
  /** @param {object} viewer whose study, label and overlay are told of */
  constructor(viewer) {
    this.viewer = viewer;
    this.at = null;
  }

  /**
   * Tell of a pixel at once where it is, and what it holds when that has come; null says how to
   * move. While one is asked for, only the last waits.
   * @param {{pane: object, row: number, column: number} | null} at
   */
  async show(at) {
    this.at = at;
    this.tell(at);
    this.wanted = true;
    if (this.running) return;
    this.running = true;
    try {
      while (this.wanted && this.at) {
        this.wanted = false;
        const asked = this.at;
        const found = await ask("/view/value", { query: this.query(asked) });
        if (asked === this.at) this.tell(asked, found);
      }
    } catch {
      // the place is told; what is wrong with the study, its pictures tell
    } finally {
      this.running = false;
    }
  }

  /** The same pixel, of a plane that has changed under the pointer. */
  again(pane) {
    if (this.at?.pane === pane) this.show({ ...this.at });
  }

  query({ pane, row, column }) {
    const { study, tag } = this.viewer;
    return { image: study.name, plane: pane.name, index: pane.shown.index, row, column,
      ...(tag ? { tag } : {}) };
  }

  tell(at, found) {
    const parts = at ? [this.place(at)] : [HINTS[this.viewer.facts.kind]];
    if (found) parts.push(valued(found.value), this.named(found.label));
    byId("readout").textContent = parts.filter(Boolean).join(" · ");
  }

  /** The voxel in its file and in the patient, or the pixel of a frame. */
  place({ pane, row, column }) {
    const { facts } = this.viewer;
    const { index } = pane.shown;
    if (facts.kind === "video") {
      return `frame ${index + 1}, ${(index / facts.fps).toFixed(2)} s · row ${row}, column ${column}`;
    }
    const up = facts.shape[0] - 1 - row;
    const [z, y, x] = { axial: [index, row, column], coronal: [up, index, column],
      sagittal: [up, column, index] }[pane.name];
    const through = (matrix) => matrix.map(([a, b, c, d]) => a * x + b * y + c * z + d);
    const millimetres = through(facts.in_patient).map((mm, axis) =>
      `${SIDES[axis][mm < 0 ? 1 : 0]} ${Math.abs(mm).toFixed(1)}`);
    return `voxel ${through(facts.in_file).join(", ")} · ${millimetres.join(" ")} mm`;
  }

  /** Name of a value of the label that is seen. */
  named(value) {
    const { overlay, label } = this.viewer;
    const entry = label?.counts.find((one) => one.value === value);
    return entry && overlay.on && !overlay.hidden.has(value) ? this.viewer.labelName(entry) : null;
  }
}

function valued(value) {
  if (value === null) return "no number";
  if (!Array.isArray(value)) return `value ${value}`;
  const [red, green, blue] = value;
  return `red ${red}, green ${green}, blue ${blue}`;
}
