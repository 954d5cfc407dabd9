/** Small helpers for elements, messages and questions. */

/** The element of an id. */
export const byId = (id) => document.getElementById(id);

/** A new element: properties, `on...` listeners, `data` and `style`, and what it holds. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key === "style") for (const [name, what] of Object.entries(value)) made.style[name] = what;
    else if (key === "data") Object.assign(made.dataset, value);
    else if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** A message at the foot of the page; errors stay until they are closed. */
export function say(text, kind = "done") {
  const toasts = byId("toasts");
  const old = [...toasts.children].find((one) => one.dataset.text === text);
  old?.remove();
  const close = el("button", { ariaLabel: "Close", textContent: "×" });
  const toast = el("div", { className: `toast ${kind}`, data: { text } }, el("p", {}, text), close);
  close.addEventListener("click", () => toast.remove());
  toasts.append(toast);
  while (toasts.children.length > 4) toasts.firstChild.remove();
  if (kind !== "error") setTimeout(() => toast.remove(), 5000);
}

/** Run something; what it is refused with becomes a message. Gives whether it went well. */
export async function attempt(work, what = "") {
  try {
    await work();
    return true;
  } catch (error) {
    if (error.status !== 401) say(what ? `${what}: ${error.message}` : error.message, "error");
    return false;
  }
}

/** A question with two answers; gives whether it was agreed to. */
export function agree(title, body, yes, kind = "primary") {
  const dialog = el("dialog", { ariaLabel: title });
  const no = el("button", { value: "no", textContent: yes ? "Cancel" : "Close" });
  const agreed = yes ? el("button", { value: "yes", className: kind, textContent: yes }) : null;
  const form = el("form", { method: "dialog" }, el("h2", {}, title), body,
    el("div", { className: "row end" }, no, agreed));
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}

/** Let the browser save something as a file. */
export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

/** A name that may be broken after its underscores. */
export function breakable(name) {
  return name.split(/(?<=_)/).flatMap((part) => [part, document.createElement("wbr")]);
}

/** Bytes for people. */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count < 10 && unit ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

/** A number with few digits, for people. */
export function short(number) {
  return String(Number(Number(number).toPrecision(4)));
}
