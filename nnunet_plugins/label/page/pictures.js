/** Pictures that were fetched last, so that going back and forth is smooth. */

import { picture } from "./api.js";

const MOST_PIXELS = 48e6;

export class Pictures {
  constructor() {
    this.clear();
  }

  clear() {
    this.kept = new Map();
    this.pixels = 0;
  }

  /** A picture; `version` tells apart what an address gave at different times. */
  async get(path, query, version = "") {
    const key = `${path} ${new URLSearchParams(query)} ${version}`;
    const kept = this.kept;
    if (kept.has(key)) {
      const old = kept.get(key);
      kept.delete(key);
      kept.set(key, old);
      return old;
    }
    const promise = picture(path, query);
    kept.set(key, promise);
    try {
      const made = await promise;
      if (kept === this.kept) this.count(made);
    } catch (error) {
      kept.delete(key);
      throw error;
    }
    return promise;
  }

  count(made) {
    this.pixels += made.width * made.height;
    for (const [key, old] of this.kept) {
      if (this.pixels <= MOST_PIXELS) return;
      this.kept.delete(key);
      old.then((bitmap) => (this.pixels -= bitmap.width * bitmap.height), () => {});
      if (this.kept.size <= 8) return;
    }
  }
}
