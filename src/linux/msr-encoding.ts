/** `struct kvm_msrs`, `struct kvm_msr_list` and `struct kvm_msr_filter` with what follows them. No behaviour. */
import { kvm_msr_entry, kvm_msr_filter, kvm_msr_list, kvm_msrs } from '../abi/kvm-structs.ts';
import { checkBytes, checkEntries } from '../abi/layout.ts';
import type { MsrEntry, MsrFilter } from '../kernel/interface.ts';
import { encodeRequest } from './kvm-encoding.ts';

export function encodeMsrs(entries: readonly MsrEntry[]): Uint8Array {
  checkEntries(entries, 'kvm_msrs.entries');
  const bytes = new Uint8Array(kvm_msrs.size + entries.length * kvm_msr_entry.size);
  bytes.set(kvm_msrs.encode({ nmsrs: entries.length }));
  for (const [i, { index, data }] of entries.entries())
    bytes.set(encodeRequest(kvm_msr_entry, { index, data }), kvm_msrs.size + i * kvm_msr_entry.size);
  return bytes;
}

/** The first `count` entries. */
export const decodeMsrs = (bytes: Uint8Array, count: number): MsrEntry[] =>
  Array.from({ length: count }, (_, i) => {
    const { index, data } = kvm_msr_entry.decode(bytes.subarray(kvm_msrs.size + i * kvm_msr_entry.size));
    return { index, data };
  });

/** An empty list with room for `count` numbers. */
export function encodeMsrList(count: number): Uint8Array {
  const bytes = new Uint8Array(kvm_msr_list.size + 4 * count);
  bytes.set(kvm_msr_list.encode({ nmsrs: count }));
  return bytes;
}

export const countOfMsrList = (bytes: Uint8Array): number => kvm_msr_list.decode(bytes).nmsrs;

export function decodeMsrList(bytes: Uint8Array): number[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Array.from({ length: countOfMsrList(bytes) }, (_, i) =>
    view.getUint32(kvm_msr_list.size + 4 * i, true),
  );
}

/** `addressOf`: where a bitmap lies, for as long as the call lasts. */
export function encodeMsrFilter(
  { flags, ranges }: MsrFilter,
  addressOf: (bitmap: Uint8Array) => bigint,
): Uint8Array {
  checkEntries(ranges, 'kvm_msr_filter.ranges');
  return encodeRequest(kvm_msr_filter, {
    flags,
    ranges: ranges.map(({ flags, base, nmsrs, bitmap }, i) => {
      checkBytes(bitmap, 0, `kvm_msr_filter.ranges[${i}].bitmap`);
      return { flags, base, nmsrs, bitmap: bitmap.length === 0 ? 0n : addressOf(bitmap) };
    }),
  });
}
