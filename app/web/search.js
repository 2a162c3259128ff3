// The Search tab.

/** @param {HTMLElement} panel  @param {import("./main.js").Shell} shell */
export function mount(panel, shell) {
  return { shown() {}, hidden() {} };
}
