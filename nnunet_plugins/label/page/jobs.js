/** What the server does in the background: training, segmentation of many studies, scoring. */

import { ask } from "./api.js";
import { breakable, byId, el } from "./dom.js";

const KINDS = {
  train: ["/train/", "Training"],
  batch_infer: ["/batch/infer/", "Segmentation of all"],
  scoring: ["/scoring/", "Scoring"],
};
const ACTIVE = ["SUBMITTED", "RUNNING"];
const LINES = 6;
/** What loggers put before a line; bars of terminals, and results in JSON. */
const STAMP = /^(?:\d{4}-\d\d-\d\d [\d:,.]+ - (?:INFO - )?|\[\d{4}-.*?\) - )/;
const NOISE = /^\s*(?:\[\d+\/\d+\]|.*?\d+%\||Result: \{)/;

/** The last job of each kind; null where there was none. */
export const fetchJobs = () => ask("/view/jobs");

export const isActive = (job) => Boolean(job) && ACTIVE.includes(job.status);

/**
 * @param {object} jobs by kind
 * @param {(title: string, path: string) => void} stop
 */
export function showJobs(jobs, stop) {
  const cards = Object.entries(jobs).filter(([, job]) => job)
    .sort(([, a], [, b]) => (a.start_ts < b.start_ts ? 1 : -1))
    .map(([kind, job]) => card(kind, job, stop));
  byId("jobs").replaceChildren(...(cards.length ? cards
    : [el("p", { className: "faint" }, "Nothing has been started since the server began.")]));
  byId("jobs").querySelectorAll("pre").forEach((lines) => (lines.scrollTop = lines.scrollHeight));
}

function card(kind, job, stop) {
  const [path, title] = KINDS[kind];
  const active = isActive(job);
  const head = el("div", { className: "row" },
    el("b", {}, title, job.request.model ? [": ", ...breakable(job.request.model)] : null),
    el("span", { className: `chip ${job.status.toLowerCase()}` }, job.status.toLowerCase()));
  const parts = [head];
  if (active) {
    const done = progress(job);
    parts.push(el("progress", done === null ? {} : { value: done, max: 1 }));
  }
  parts.push(el("p", { className: "faint" },
    `since ${job.start_ts.slice(11, 16)}${job.end_ts ? `, ended ${job.end_ts.slice(11, 16)}` : ""}`));
  const lines = job.details.map((line) => line.replace(STAMP, ""))
    .filter((line) => !NOISE.test(line)).slice(-LINES);
  if (job.status === "ERROR") {
    parts.push(el("p", { className: "wrong" }, lines.at(-1)?.replace(/^\w*Error: /, "") ?? "It failed."));
  } else if (lines.length) {
    parts.push(el("pre", { tabIndex: 0, ariaLabel: "Last lines of the log" },
      lines.join("\n")));
  }
  if (active) {
    const button = el("button", { textContent: "Stop" });
    button.addEventListener("click", () => stop(title, path));
    parts.push(button);
  }
  return el("article", { className: "job", data: { kind, status: job.status } }, parts);
}

/** Share that is done, by the last line that tells; null if none does. */
function progress(job) {
  for (const line of [...job.details].reverse()) {
    const epoch = line.match(/Epoch: (\d+)\/(\d+), Iter: (\d+)\/(\d+)/);
    if (epoch) {
      const [at, epochs, step, steps] = epoch.slice(1).map(Number);
      return (at - 1 + step / steps) / epochs;
    }
    const study = line.match(/^(\d+)\/(\d+) /);
    if (study) return study[1] / study[2];
  }
  return null;
}
