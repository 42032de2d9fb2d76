/** The bytes at RIP without running them: decode assists of an exit, and what a host's emulator reads. */
import { SAVE } from '../../abi/vmcb.ts';
import { ACCESS } from './access.ts';
import { isCanonical } from './memory-access.ts';
import { in64BitMode } from './mode.ts';
import type { CoreParts } from './parts.ts';
import { STATE } from './state.ts';

/** Fills `into` with guest code from RIP on; returns how many bytes could be fetched. May leave an exception or exit pending: ignore it. */
export function peekCode(parts: CoreParts, into: Uint8Array): number {
  const { registers, memory } = parts;
  let low = registers.word(STATE.RIP);
  let high = registers.word(STATE.RIP + 4);
  if (!in64BitMode(registers)) {
    low = Number(BigInt.asIntN(32, registers.base(SAVE.CS) + registers.rip));
    high = 0;
  }
  let done = 0;
  while (done < into.length) {
    const frame = fetchable(parts, low, high);
    if (frame < 0) return done;
    const offset = low & 0xfff;
    const count = Math.min(into.length - done, 4096 - offset);
    const from = frame * 4096 + offset;
    for (let i = 0; i < count; i++) into[done + i] = memory.bytes[from + i]!;
    done += count;
    low = (low + count) | 0;
    if (low === 0) high = (high + 1) | 0;
  }
  return done;
}

/** The frame of code at a linear address, or −1. */
function fetchable({ registers, walker, access, tlb }: CoreParts, low: number, high: number): number {
  if (!isCanonical(high)) return -1;
  const known = tlb.fetchFrame(low, high, registers.word(STATE.TLB_SET));
  if (known >= 0) return known;
  return walker.translate(low, high, ACCESS.FETCH, access.privilege) === 0 ? walker.frame : -1;
}
