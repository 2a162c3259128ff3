// The details of a clip.

export function openClip(shell, clip, moments) {
  shell.setParams({ open: clip.id ?? clip });
}
