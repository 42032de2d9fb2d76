/** Snippets that chance would not find: branches to addresses that are not canonical, and instructions longer than 15 bytes. */
import { type Snippet, WINDOW_BYTES } from './snippet.ts';
import { windowAddress } from './snippet-program.ts';

const [RAX, RBX, RSP] = [0, 3, 4];
const MIDDLE = WINDOW_BYTES / 2;

const NOT_CANONICAL = [1n << 63n, 1n << 47n, 0xffff_7fff_ffff_ffffn, 0x1234_5678_9abc_def0n];

/** The target is in RAX, at RBX and at RSP. */
const BRANCHES: readonly (readonly [string, readonly number[]])[] = [
  ['jmp rax', [0xff, 0xe0]],
  ['call rax', [0xff, 0xd0]],
  ['jmp [rbx]', [0xff, 0x23]],
  ['call [rbx]', [0xff, 0x13]],
  ['ret', [0xc3]],
  ['ret 16', [0xc2, 16, 0]],
  ['push rax; ret', [0x50, 0xc3]],
];

const prefixed = (count: number, ...rest: readonly number[]): number[] => [
  ...new Array<number>(count).fill(0x66),
  ...rest,
];

const LONG: readonly (readonly [string, readonly number[]])[] = [
  ['14 prefixes and nop', prefixed(14, 0x90)],
  ['15 prefixes and nop', prefixed(15, 0x90)],
  ['15 prefixes and ud2', prefixed(15, 0x0f, 0x0b)],
  ['14 prefixes and 0f 0b', prefixed(14, 0x0f, 0x0b)],
  ['13 prefixes and ud2', prefixed(13, 0x0f, 0x0b)],
  ['14 prefixes and push es', prefixed(14, 0x06)],
  ['15 prefixes and push es', prefixed(15, 0x06)],
  ['lock, 14 prefixes and nop', [0xf0, ...prefixed(14, 0x90)]],
  ['lock, 13 prefixes and push es', [0xf0, ...prefixed(13, 0x06)]],
  ['12 prefixes and add [rip], imm32', prefixed(11, 0x48, 0x81, 0x05, 0, 0, 0, 0, 0, 0, 0, 0)],
  ['12 prefixes and 0f 04', prefixed(11, 0x48, 0x0f, 0x04, 0)],
  ['rep, 12 segments and popcnt', [0xf3, ...new Array<number>(12).fill(0x2e), 0x0f, 0xb8, 0xc0]],
  ['15 times REX and nop', [...new Array<number>(15).fill(0x48), 0x90]],
];

/** All of them, each with its place among the snippets of one program. */
export function fixedSnippets(): Snippet[] {
  const branches = NOT_CANONICAL.flatMap((target) =>
    BRANCHES.map(([text, code]) => ({ text: `${text} to ${target.toString(16)}`, code, target })),
  );
  const long = LONG.map(([text, code]) => ({ text, code, target: 0n }));
  return [...branches, ...long].map(({ text, code, target }, n) => {
    const middle = BigInt(windowAddress(n) + MIDDLE);
    const registers = new Array<bigint>(16).fill(0n);
    registers[RAX] = target;
    registers[RBX] = middle;
    registers[RSP] = middle;
    const window = new Uint8Array(WINDOW_BYTES).fill(0x5a);
    new DataView(window.buffer).setBigUint64(MIDDLE, target, true);
    return {
      text,
      code: Uint8Array.from(code),
      before: { registers, flags: 0x202n, vectors: new Uint8Array(256), mxcsr: 0x1f80, window },
      undefinedFlags: 0n,
      everUndefined: 0n,
    };
  });
}
