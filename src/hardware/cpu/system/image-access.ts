/** State images in guest memory: FXSAVE's and XSAVE's accesses. Both pages are checked before anything is written or taken. */
import type { FxImage } from '../fx-image.ts';
import type { SystemInstruction } from './instruction.ts';

const PAGE_MASK = ~0xfffn;

/** 0 if all of the image up to byte `end` can be written, else a LEAVE code. */
export function probeImage(i: SystemInstruction, address: bigint, end: number): number {
  const { access } = i.parts;
  const reason = access.probeAt(address, 8, access.privilege);
  const last = (address + BigInt(end - 8)) & PAGE_MASK;
  if (reason !== 0 || last === (address & PAGE_MASK)) return reason;
  return access.probeAt(last, 8, access.privilege);
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
