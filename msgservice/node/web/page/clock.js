// The time as the node has it: the browser's own clock may be hours off, and what is shown is how
// long ago something was at the node.

let ahead = null; // ms of the node's clock at the beginning of this page

export function nodeSays(at) {
  const found = at - performance.now();
  // What is said is older than now by its way here: the youngest counts, until the clock is set.
  if (ahead === null || found > ahead || ahead - found > 5000) ahead = found;
}

export const now = () => (ahead === null ? Date.now() : ahead + performance.now());

export const ago = (at) => now() - at;
