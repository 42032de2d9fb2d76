/**
 * Near branches with prefix 66 in 64-bit mode: where the host's CPU goes, if it is AMD's, and what it pushes, pops and counts, ours does. Taken they lead below what can
 * be mapped, so the host says by a page fault where it went; int3 stands behind them.
 */
import { describe, expect, it } from 'vitest';
import { CODE, GuestBench, RAX, RFLAGS, RIP, RSP, STACK } from '../hardware/cpu/guest-bench.ts';
import { hostUnfit, hostVendor, runOnHost } from '../oracle/host-cpu.ts';
import { type Snippet, WINDOW_BYTES } from '../oracle/snippet.ts';
import { snippetProgram, windowAddress } from '../oracle/snippet-program.ts';

const MIDDLE = 512;
const CODE_AT = 16;
const [RCX_NUMBER, RSP_NUMBER] = [1, 4];
/** In RAX, and at RSP. */
const TARGET = 0x1234_5678_9abc_0120n;
const SIGTRAP = 5;
const ZF = 0x40n;
/** One step of ours ends in #DB. */
const TF = 0x100n;
const DB = 0x41;

const CONDITIONAL = Array.from({ length: 16 }, (_, code) => code);
/** By text: code; RCX and RFLAGS before. */
const CASES: readonly (readonly [string, readonly number[], bigint?, bigint?])[] = [
  ['call rel16', [0x66, 0xe8, 0x10, 0x00]],
  ['call rel16 backwards', [0x66, 0xe8, 0xf0, 0xff]],
  ['repne call rel16', [0x66, 0xf2, 0xe8, 0x10, 0x00]],
  ['call ax', [0x66, 0xff, 0xd0]],
  ['call [rsp]', [0x66, 0xff, 0x14, 0x24]],
  ['jmp rel16', [0x66, 0xe9, 0x10, 0x00]],
  ['jmp rel8', [0x66, 0xeb, 0x10]],
  ['jmp ax', [0x66, 0xff, 0xe0]],
  ['jmp [rsp]', [0x66, 0xff, 0x24, 0x24]],
  ['ret', [0x66, 0xc3]],
  ['ret 4', [0x66, 0xc2, 0x04, 0x00]],
  ...[0x2n, 0x3n, 0x42n, 0x82n, 0x806n].flatMap((flags) =>
    CONDITIONAL.flatMap((code) => [
      [`70+${code}, flags ${flags}`, [0x66, 0x70 + code, 0x10], 0n, flags] as const,
      [`0f 80+${code}, flags ${flags}`, [0x66, 0x0f, 0x80 + code, 0x10, 0x00], 0n, flags] as const,
    ]),
  ),
  ...[0n, 1n, 2n, 1n << 32n, (1n << 32n) + 1n].flatMap((rcx) =>
    [0n, ZF].flatMap((flags) =>
      [0xe0, 0xe1, 0xe2, 0xe3].flatMap((opcode) => [
        [`${opcode.toString(16)}, RCX ${rcx}, ZF ${flags}`, [0x66, opcode, 0x10], rcx, flags | 2n] as const,
        [
          `67 ${opcode.toString(16)}, RCX ${rcx}, ZF ${flags}`,
          [0x66, 0x67, opcode, 0x10],
          rcx,
          flags | 2n,
        ] as const,
      ]),
    ),
  ),
];

/** Jumps into its window, where the code lies; on the host its low 16 bits are the window's. */
function snippetOf(n: number, code: readonly number[], rcx: bigint, flags: bigint): Snippet {
  const at = windowAddress(n);
  const window = new Uint8Array(WINDOW_BYTES).fill(0x5a);
  const view = new DataView(window.buffer);
  view.setBigUint64(0, BigInt(at + CODE_AT), true);
  window.set([...code, 0xcc], CODE_AT);
  view.setBigUint64(MIDDLE, TARGET, true);
  const registers = new Array<bigint>(16).fill(0n);
  registers[0] = TARGET;
  registers[RCX_NUMBER] = rcx;
  registers[RSP_NUMBER] = BigInt(at + MIDDLE);
  const jump = Uint8Array.from([0xff, 0x24, 0x25, 0, 0, 0, 0]);
  new DataView(jump.buffer).setUint32(3, at, true);
  const before = { registers, flags: flags | 0x200n, vectors: new Uint8Array(256), mxcsr: 0x1f80, window };
  return { text: '', code: jump, before, undefinedFlags: 0n, everUndefined: 0n };
}

const unfit = hostUnfit() ?? (hostVendor() === 'AMD' ? undefined : "AMD's cores alone honour the prefix");
if (unfit) console.log(`narrow branches not asked: ${unfit}`);

describe.skipIf(unfit !== undefined)('near branches of 16 bits', () => {
  it("go where the host's CPU goes", () => {
    const snippets = CASES.map(([, code, rcx = 0n, flags = 2n], n) => snippetOf(n, code, rcx, flags));
    const program = snippetProgram(snippets);
    const output = runOnHost(program);
    const bench = new GuestBench();
    bench.interceptException(1);
    const wrong: string[] = [];
    for (const [n, [text, code, rcx = 0n, flags = 2n]] of CASES.entries()) {
      const want = program.outcome(n, output);
      const from = BigInt(windowAddress(n) + CODE_AT);
      const trapped = want.signal === SIGTRAP;
      const ours = BigInt(CODE) * 8n + (from & 0xffffn);
      for (const [k, byte] of code.entries())
        bench.memory.write(bench.spa(Number(ours) + k), Uint8Array.of(byte));
      bench.write(STACK - 8, 0x5a5a_5a5a_5a5a_5a5an);
      bench.write(STACK, TARGET);
      bench.setLong(RAX, TARGET);
      bench.core.gpr[RCX_NUMBER] = rcx;
      bench.setLong(RSP, BigInt(STACK));
      bench.setLong(RFLAGS, flags | TF);
      bench.setLong(RIP, ours);
      bench.flush();
      expect(bench.run(), text).toBe(DB);
      const stack = new DataView(want.window.buffer, want.window.byteOffset + MIDDLE - 8, 8);
      const got = [
        bench.long(RIP),
        bench.long(RSP) - BigInt(STACK),
        bench.core.gpr[RCX_NUMBER],
        bench.read(STACK - 8),
      ];
      const wanted = [
        trapped ? want.rip - 1n - from + ours : want.rip,
        want.registers[RSP_NUMBER]! - BigInt(windowAddress(n) + MIDDLE),
        want.registers[RCX_NUMBER],
        stack.getBigUint64(0, true),
      ];
      if (`${got}` !== `${wanted}`) wrong.push(`${text}: got ${got}, want ${wanted}`);
    }
    bench.close();
    expect(wrong).toEqual([]);
  });
});
