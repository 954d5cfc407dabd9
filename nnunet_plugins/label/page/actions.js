/** What the buttons do. */

import { ask, request } from "./api.js";
import { agree, attempt, el, save, say } from "./dom.js";
import { scoreTable, sentence, whose } from "./models.js";

/** Address and ending of the files that a label is saved as. */
const FILES = { nifti: ["/view/label.nii.gz", ".nii.gz"], seg: ["/dicom/label", ".dcm"] };

/**
 * @param {object} page what `main.js` holds: `studies`, `viewer`, `busy`, and how to refresh it
 */
export function makeActions(page) {
  const { viewer } = page;

  async function segment(model) {
    const { study } = viewer;
    if (!study || page.busy.has(study.name)) return;
    page.mark(study.name, "segmenting");
    await attempt(async () => {
      const form = { params: JSON.stringify({ save_label: true }) };
      const query = { image: study.name, output: "json" };
      const facts = await ask(`/infer/${encodeURIComponent(model)}`, { method: "POST", query, form });
      page.mark(study.name, null);
      await page.refresh();
      if (viewer.study?.name === study.name) await page.open(study.name, "original");
      say(`${study.name} is segmented, in ${facts.latencies.total} s.`);
    }, study.name);
    page.mark(study.name, null);
  }

  async function accept() {
    const { study, label } = viewer;
    if (label?.tag !== "original") return;
    const replace = Boolean(study.labels.final);
    if (replace && !(await agree("Replace the final label?",
      el("p", {}, `${study.name} has a final label already. The prediction takes its place, and `
        + "the older label is gone."), "Replace", "bad"))) return;
    await attempt(async () => {
      const query = { image: study.name, version: label.version, replace };
      await ask("/view/accept", { method: "POST", query });
      await page.refresh();
      if (viewer.study?.name === study.name) await page.open(study.name, "final");
      say(`${study.name} is accepted as final.`);
    }, study.name);
  }

  async function reject() {
    const { study, label } = viewer;
    if (label?.tag !== "original") return;
    await attempt(async () => {
      const query = { image: study.name, version: label.version };
      await ask("/view/reject", { method: "POST", query });
      await page.refresh();
      if (viewer.study?.name === study.name) await page.open(study.name);
      say(`The prediction of ${study.name} is discarded.`);
    }, study.name);
  }

  /** The label that is shown, as a file of one of FILES. */
  async function download(format) {
    const { study, label, assumed } = viewer;
    if (!label) return;
    const [path, ending] = FILES[format];
    await attempt(async () => {
      const query = { image: study.name, tag: label.tag, ...(assumed.model ? { model: assumed.model } : {}) };
      const answer = await request(path, { query });
      save(await answer.blob(), `${study.name}_${label.tag}${ending}`);
    }, study.name);
  }

  async function next(model) {
    await attempt(async () => {
      page.choosing(true);
      const found = await ask("/activelearning/uncertainty", { method: "POST", json: { model } });
      await page.refresh();
      if (!found.id) return say(`Every study for ${model} has a final label.`);
      await page.open(found.id);
      const left = found.not_yet_seen ? `; ${found.not_yet_seen} were not looked at yet` : "";
      say(`${found.id}: uncertainty ${found.uncertainty.toFixed(2)}, the most${left}.`);
    }, "Next");
    page.choosing(false);
  }

  async function train(model, epochs) {
    await attempt(async () => {
      await ask(`/train/${encodeURIComponent(model)}`, { method: "POST", json: { max_epochs: epochs } });
      say(`A training of ${model} has begun; what is served does not change.`);
    }, model);
    await page.watch();
  }

  async function batch(model) {
    await attempt(async () => {
      const query = { images: "unlabeled" };
      await ask(`/batch/infer/${encodeURIComponent(model)}`, { method: "POST", query, json: {} });
      say(`${model} segments every study without a final label.`);
    }, model);
    await page.watch();
  }

  async function promote(model, report) {
    const kind = report.better === false ? "bad" : "primary";
    const body = el("div", {}, el("p", {}, sentence(report.verdict)), whose(report),
      scoreTable(report),
      el("p", { className: "faint" }, `Trained on ${report.trained_on.length} studies, ${report.epochs} `
        + "epochs. What is served now is kept and can be restored."));
    if (!(await agree(`Promote the candidate of ${model}?`, body, "Promote", kind))) return;
    await attempt(async () => {
      const query = { candidate: report.weights };
      await ask(`/promote/${encodeURIComponent(model)}`, { method: "POST", query });
      await page.refresh();
      say(`${model} serves the candidate now.`);
    }, model);
  }

  async function restore(model) {
    const body = el("p", {}, "What was served before the last promotion is served again, and the "
      + "weights in use now are gone.");
    if (!(await agree(`Restore the older weights of ${model}?`, body, "Restore", "bad"))) return;
    await attempt(async () => {
      await ask(`/restore/${encodeURIComponent(model)}`, { method: "POST" });
      await page.refresh();
      say(`${model} serves the older weights again.`);
    }, model);
  }

  async function stop(title, path) {
    await attempt(() => ask(path, { method: "DELETE" }), title);
    await page.watch();
  }

  async function reload() {
    await attempt(async () => {
      await ask("/reload", { method: "POST" });
      await page.refresh();
      say("The list is new.");
    });
  }

  return { segment, accept, reject, download, next, train, batch, promote, restore, stop, reload };
}
