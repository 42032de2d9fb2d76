/** The parts of the VMCB's save area that a core keeps a mirror of, copied word by word: they cost less than a view. */
import { SAVE } from '../../abi/vmcb.ts';

/** [first byte, end) of each run of fields. */
const RUNS: readonly (readonly [number, number])[] = [
  [SAVE.ES, SAVE.TR + 16],
  [SAVE.CPL & ~3, SAVE.EFER + 8],
  [SAVE.CR4, SAVE.DR6 + 8],
  [SAVE.STAR, SAVE.CR2 + 8],
  [SAVE.G_PAT, SAVE.DBGCTL + 8],
];
const OFFSETS = Int32Array.from(
  RUNS.flatMap(([from, to]) => Array.from({ length: (to - from) >> 2 }, (_, k) => (from >> 2) + k)),
);

/** Copies the mirrored fields from the save area at address `from` to the one at `to`. */
export function copySaveArea(words: Int32Array, from: number, to: number): void {
  const source = from >>> 2;
  const target = to >>> 2;
  for (let k = 0; k < OFFSETS.length; k++) words[target + OFFSETS[k]!] = words[source + OFFSETS[k]!]!;
}
