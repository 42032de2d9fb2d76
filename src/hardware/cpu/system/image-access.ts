/**
 * State images in guest memory: FXSAVE's and XSAVE's accesses. Both ends are checked before anything is written or taken, by the order that an
 * EPYC's page faults show.
 */
import type { FxImage } from '../fx-image.ts';
import type { SystemInstruction } from './instruction.ts';

/** 0 if the bytes at `addresses` can be accessed, asked in that order; else a LEAVE code. An image lies in two pages at most. */
export function checkImage(
  i: SystemInstruction,
  kind: 'read' | 'write',
  ...addresses: readonly bigint[]
): number {
  const { access } = i.parts;
  for (const at of addresses) {
    const reason =
      kind === 'read' ? access.loadSized(at, 1, access.privilege) : access.probeAt(at, 1, access.privilege);
    if (reason !== 0) return reason;
  }
  return 0;
}

/** Bytes `from` up to `end` (multiples of 8) of the image to memory. */
export function storeImage(
  i: SystemInstruction,
  address: bigint,
  image: FxImage,
  [from, end]: readonly [number, number],
): number {
  const { access } = i.parts;
  for (let at = from; at < end; at += 8) {
    const reason = access.storeLong(address + BigInt(at), image.longs[at >> 3]!, access.privilege);
    if (reason !== 0) return reason;
  }
  return 0;
}

export function loadImage(
  i: SystemInstruction,
  address: bigint,
  image: FxImage,
  [from, end]: readonly [number, number],
): number {
  const { access } = i.parts;
  for (let at = from; at < end; at += 8) {
    const reason = access.loadLong(address + BigInt(at), access.privilege);
    if (reason !== 0) return reason;
    image.longs[at >> 3] = access.value;
  }
  return 0;
}
