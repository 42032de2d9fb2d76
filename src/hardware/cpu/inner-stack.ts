/**
 * The stack of an inner level, as call gates and interrupts take it from the TSS (APM volume 2, 8.7.3, 8.9.3, 12.2): RSP0 to RSP2 and IST1 to IST7 in
 * long mode, SS:ESP or SS:SP elsewhere.
 */
import { SAVE } from '../../abi/vmcb.ts';
import { VECTOR } from '../../abi/x86.ts';
import { PRIVILEGE } from './access.ts';
import { isCanonicalAddress } from './memory-access.ts';
import type { CoreParts } from './parts.ts';
import { ProcessorStack } from './processor-stack.ts';
import type { Segmentation } from './segments.ts';

const TSS_RSP0 = 4;
const TSS_IST1 = 0x24;

/** A segment as it is about to be loaded. */
export interface SegmentTarget {
  readonly selector: number;
  readonly attributes: number;
  readonly limit: number;
  readonly base: bigint;
}

/** An inner level's stack and what SS becomes; or a LEAVE code. */
export type InnerStack = { readonly stack: ProcessorStack; readonly segment: SegmentTarget } | number;

/**
 * Reads a stack pointer of the 64-bit TSS into `access.value`: that of `cpl`, or with `ist` one to seven an interrupt stack's. `external`: 1 while
 * an external event is delivered. 0 or a LEAVE code.
 */
export function loadStackPointer(
  { registers, access, events }: CoreParts,
  cpl: number,
  { ist, external }: { readonly ist: number; readonly external: number },
): number {
  const offset = ist !== 0 ? TSS_IST1 + 8 * (ist - 1) : TSS_RSP0 + 8 * cpl;
  if (offset + 7 > registers.limit(SAVE.TR))
    return events.raiseWith(VECTOR.TS, (registers.selector(SAVE.TR) & 0xfffc) | external);
  const reason = access.loadLong(registers.base(SAVE.TR) + BigInt(offset), PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  return isCanonicalAddress(access.value) ? 0 : events.raiseWith(VECTOR.SS, external);
}

/** RSP of the 64-bit TSS for a call gate; SS becomes null. */
export function longInnerStack(parts: CoreParts, cpl: number): InnerStack {
  const reason = loadStackPointer(parts, cpl, { ist: 0, external: 0 });
  if (reason !== 0) return reason;
  const stack = new ProcessorStack(parts).inner(parts.access.value, undefined, 0);
  return { stack, segment: { selector: cpl, attributes: cpl << 5, limit: 0, base: 0n } };
}

/** SS and ESP of a TSS of 32 or 16 bits. */
export function legacyInnerStack(
  { parts, segments }: { readonly parts: CoreParts; readonly segments: Segmentation },
  cpl: number,
): InnerStack {
  const { registers, access, events } = parts;
  const wide = (registers.attributes(SAVE.TR) & 8) !== 0;
  const size = wide ? 4 : 2;
  const offset = wide ? 4 + 8 * cpl : 2 + 4 * cpl;
  if (offset + (wide ? 5 : 3) > registers.limit(SAVE.TR))
    return events.raiseWith(VECTOR.TS, registers.selector(SAVE.TR) & 0xfffc);
  const at = registers.base(SAVE.TR) + BigInt(offset);
  let reason = access.loadSized(at, size, PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  const pointer = access.value;
  reason = access.loadSized(at + BigInt(size), 2, PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  const selector = Number(access.value);
  const checked = segments.loadStack(selector, cpl, 'legacy', VECTOR.TS);
  if (checked !== 0) return checked;
  const { attributes, limit, base } = segments.descriptor;
  const segment = { selector, attributes, limit, base };
  return { stack: new ProcessorStack(parts).inner(pointer, segment, selector & 0xfffc), segment };
}
