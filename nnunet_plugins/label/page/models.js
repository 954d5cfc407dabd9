/** The served models: what they find, which weights are in use, and their candidates. */

import { breakable, byId, el } from "./dom.js";

/**
 * @param {object} info what /info/ says
 * @param {string[]} colours of the values 1, 2 and so on
 * @param {{train: Function, batch: Function, promote: Function, restore: Function}} act
 */
export function showModels(info, colours, act) {
  const names = [...new Set([...Object.keys(info.models), ...Object.keys(info.trainers)])];
  const root = byId("models");
  const open = new Set([...root.querySelectorAll("details[open]")].map((one) => one.dataset.model));
  const epochs = Object.fromEntries([...root.querySelectorAll("input[name=epochs]")]
    .map((input) => [input.dataset.model, input.value]));
  const cards = names.map((name) => card(name, info, colours, act, epochs[name]));
  cards.forEach((one) => (one.open = open.has(one.dataset.model)));
  root.replaceChildren(...cards);
}

/** Unfold what is told of a model. */
export function openCard(name) {
  const found = [...byId("models").children].find((one) => one.dataset.model === name);
  if (found) found.open = true;
}

function card(name, info, colours, act, epochs) {
  const model = info.models[name];
  const stats = info.train_stats?.[name] ?? {};
  const kind = !model ? "no weights" : model.kind === "video" ? "Video" : "3D";
  const summary = el("summary", {}, el("span", { className: "name" }, breakable(name)),
    el("span", { className: `chip ${model ? "none" : "other"}` }, kind),
    stats.candidate ? el("span", { className: "chip candidate" }, "candidate") : null);
  const labels = Object.entries(model?.labels ?? {}).map(([label, value]) =>
    el("li", {}, el("span", { className: "swatch", style: { background: colours[value - 1] } }), label));
  const served = el("p", { className: "faint" }, servedBy(model, stats));
  return el("details", { data: { model: name }, name: "models" }, summary,
    el("ul", { className: "labels" }, labels), served,
    stats.candidate ? candidate(name, stats.candidate, act) : null,
    buttons(name, info, act, epochs));
}

function servedBy(model, stats) {
  if (!model) return "Nothing is served yet: train it, then promote the candidate.";
  const since = stats.served ? `trained ${stats.served.made.slice(0, 10)}, promoted` : "as it came";
  return `Serves ${model.weights.slice(0, 8)}, ${since}`;
}

function candidate(name, report, act) {
  const kind = report.better === false ? "" : "primary";
  const button = el("button", { className: kind, textContent: "Promote …" });
  button.addEventListener("click", () => act.promote(name, report));
  return el("div", { className: "candidate-box" }, compared(report.mean_dice),
    el("p", {}, sentence(report.verdict)), whose(report), button);
}

/** What is known of patients on both sides of the split. */
export function whose(report) {
  return report.patients ? el("p", { className: "faint" }, sentence(report.patients)) : null;
}

/** Mean Dice of served and candidate, side by side. */
function compared(means) {
  const part = (title, value) => el("div", {}, el("span", {}, title),
    el("b", {}, value === null || value === undefined ? "–" : value.toFixed(3)));
  return el("div", { className: "compare" }, part("served", means.served),
    part("candidate", means.candidate));
}

function buttons(name, info, act, epochs) {
  const row = el("div", { className: "row wrap" });
  const config = info.trainers[name]?.config;
  if (config) {
    const input = el("input", { type: "number", name: "epochs", min: 1, max: 1000, step: 1,
      value: epochs ?? config.max_epochs, ariaLabel: "Epochs", data: { model: name } });
    const train = el("button", { textContent: "Train", data: { act: "train" },
      title: "Train a candidate on the final labels; what is served does not change" });
    train.addEventListener("click", () => act.train(name, Number(input.value)));
    row.append(train, input, el("span", { className: "faint" }, "epochs"));
  }
  if (info.models[name]) {
    const batch = el("button", { textContent: "Segment all", data: { act: "batch" },
      title: "Segment every study without a final label" });
    batch.addEventListener("click", () => act.batch(name));
    row.append(el("span", { className: "gap" }), batch);
  }
  if (info.train_stats?.[name]?.served) {
    const before = el("button", { textContent: "Restore …", data: { act: "restore" },
      title: "Serve again what was served before the last promotion" });
    before.addEventListener("click", () => act.restore(name));
    row.append(before);
  }
  return row;
}

/** Scores of each held-out study, for the question before a promotion. */
export function scoreTable(report) {
  const { candidate = {}, served = {} } = report.dice;
  const rows = Object.entries(candidate).flatMap(([study, scores]) =>
    Object.entries(scores).map(([label, score]) => el("tr", {}, el("td", {}, study),
      el("td", {}, label), number(served[study]?.[label]), number(score))));
  const head = ["held-out study", "label", "served", "candidate"].map((name) => el("th", {}, name));
  return el("div", { className: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, head)),
    el("tbody", {}, rows)));
}

function number(value) {
  const text = value === null || value === undefined ? "–" : value.toFixed(3);
  return el("td", { className: "number" }, text);
}

export function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}
