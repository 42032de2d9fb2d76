/** How long an action takes: the fastest of many rounds, after warm-up, because noise only ever adds. */
export function fastest(action: () => void, rounds = 30): number {
  for (let i = 0; i < 5; i++) action();
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < rounds; i++) {
    const start = performance.now();
    action();
    best = Math.min(best, performance.now() - start);
  }
  return best;
}
