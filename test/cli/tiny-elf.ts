/** Static ELF64 files of a few instructions, for runs whose end is the point. */

const BASE = 0x100000;
const HEADERS = 64 + 56;

/** An executable whose only segment holds `code` and starts at its first byte. */
export function tinyElf(code: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(HEADERS + code.length);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setBigUint64(24, BigInt(BASE + HEADERS), true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(52, 64, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 1, true);
  view.setUint32(64, 1, true); // PT_LOAD
  view.setUint32(68, 5, true);
  view.setBigUint64(80, BigInt(BASE), true);
  view.setBigUint64(88, BigInt(BASE), true);
  view.setBigUint64(96, BigInt(bytes.length), true);
  view.setBigUint64(104, BigInt(bytes.length), true);
  view.setBigUint64(112, 4096n, true);
  bytes.set(code, HEADERS);
  return bytes;
}

/** mov al, code; out 0xf4, al; hlt */
export const exitWith = (code: number): number[] => [0xb0, code, 0xe6, 0xf4, 0xf4];
/** mov edx, 0x3f8; then mov al, c; out dx, al for each character. */
export const print = (text: string): number[] => [
  ...[0xba, 0xf8, 0x03, 0x00, 0x00],
  ...[...text].flatMap((character) => [0xb0, character.charCodeAt(0), 0xee]),
];
/** jmp to itself */
export const LOOP = [0xeb, 0xfe];
/** cli; hlt */
export const HALT = [0xfa, 0xf4];
/** ud2, with no IDT */
export const TRIPLE_FAULT = [0x0f, 0x0b];
