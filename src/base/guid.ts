/** GUIDs as text and as EFI stores them (UEFI appendix A): the first three groups little-endian. */
import { fromHex, toHex } from './hex.ts';

/** Where each byte of a GUID's text stands in memory, and the other way round. */
const ORDER = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];

/** The 16 bytes of `guid`, 32 hex digits with dashes between. */
export function guidBytes(guid: string): Uint8Array {
  const bytes = fromHex(guid.replaceAll('-', ''));
  return Uint8Array.from(ORDER, (at) => bytes[at]!);
}

/** The GUID whose 16 bytes stand in `bytes` from `at` on, in lower case. */
export const guidAt = (bytes: Uint8Array, at: number): string =>
  toHex(Uint8Array.from(ORDER, (index) => bytes[at + index]!)).replace(
    /^(.{8})(.{4})(.{4})(.{4})(.{12})$/,
    '$1-$2-$3-$4-$5',
  );
