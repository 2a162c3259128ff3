// Selecting a stretch of a drawn sound by dragging over it.

const SLACK = 4; // css pixels that a click may move

/** By mouse and pen: a finger scrolls. */
export const byPointer = ({ pointerType }) => pointerType !== "touch";

/**
 * Lets a stretch be selected by dragging over a node; a click without a drag stays a click.
 * @param {HTMLElement} node
 * @param {{at: (clientX: number) => number, onSelect: (stretch: {start: number, end: number}) => void,
 *          when?: (event: PointerEvent) => boolean}} options
 *   `at`: the time in seconds at a position; `onSelect` is called while the stretch grows; `when`: whether a drag selects
 */
export function selectable(node, { at, onSelect, when = byPointer }) {
  let from = null; // {x, t} where the button went down
  let dragged = false;
  node.addEventListener("pointerdown", (event) => {
    dragged = false;
    if (!event.button && when(event)) from = { x: event.clientX, t: at(event.clientX) };
  });
  node.addEventListener("pointermove", (event) => {
    if (!from || (!dragged && Math.abs(event.clientX - from.x) < SLACK)) return;
    if (!dragged) node.setPointerCapture(event.pointerId);
    dragged = true;
    const to = at(event.clientX);
    onSelect({ start: Math.min(from.t, to), end: Math.max(from.t, to) });
  });
  for (const end of ["pointerup", "pointercancel"]) node.addEventListener(end, () => (from = null));
  node.addEventListener(
    "click",
    (event) => {
      if (!dragged) return;
      dragged = false;
      event.stopImmediatePropagation(); // the end of a drag seeks nowhere
    },
    true,
  );
}
