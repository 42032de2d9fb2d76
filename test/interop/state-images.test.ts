/**
 * The host's own CPU judges FXSAVE, FXRSTOR and the XSAVE family: random images are restored and saved again, here by a whole core, since these
 * instructions are no business of the interpreter alone. SOFTCVM_SEED repeats a run.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { assemble, Code, hlt, iced, op, Register, set } from '../hardware/cpu/assembler.ts';
import { CODE, CR4, DATA, GuestBench } from '../hardware/cpu/guest-bench.ts';
import { hostUnfit, hostVendor, runOnHost } from '../oracle/host-cpu.ts';
import { Random } from '../oracle/random.ts';
import type { Snippet } from '../oracle/snippet.ts';
import { snippetProgram, windowAddress } from '../oracle/snippet-program.ts';

const seed = Number(process.env['SOFTCVM_SEED'] ?? Math.floor(Math.random() * 1e9));
const COUNT = 500;
const unfit = hostUnfit() ?? (hostVendor() === 'AMD' ? undefined : 'x87 images are those of an AMD CPU');
if (unfit) console.log(`state images not compared: ${unfit}`);

const { Instruction, MemoryOperand } = iced;
const GENERAL_PROTECTION_EXIT = 0x4d;
const MXCSR = 24;
const MXCSR_MASK = 28;
const HEADER = 512;

/** Where FXSAVE's images lie in the window; and XSAVE's, the saved one over the restored one, but not in its place (XSAVEOPT would notice). */
const FX = { from: 0, to: 512 } as const;
const XSAVE = { from: 448, to: 0 } as const;

/** [name, restores, saves, where the images lie] */
const PAIRS: readonly (readonly [string, number, number, typeof FX | typeof XSAVE])[] = [
  ['FXRSTOR and FXSAVE', Code.Fxrstor_m512byte, Code.Fxsave_m512byte, FX],
  ['FXRSTOR64 and FXSAVE64', Code.Fxrstor64_m512byte, Code.Fxsave64_m512byte, FX],
  ['FXRSTOR64 and FXSAVE', Code.Fxrstor64_m512byte, Code.Fxsave_m512byte, FX],
  ['FXRSTOR and FXSAVE64', Code.Fxrstor_m512byte, Code.Fxsave64_m512byte, FX],
  ['XRSTOR64 and XSAVE64', Code.Xrstor64_mem, Code.Xsave64_mem, XSAVE],
  ['XRSTOR and XSAVE', Code.Xrstor_mem, Code.Xsave_mem, XSAVE],
  ['XRSTOR64 and XSAVEOPT64', Code.Xrstor64_mem, Code.Xsaveopt64_mem, XSAVE],
  ['XRSTOR64 and XSAVEC64', Code.Xrstor64_mem, Code.Xsavec64_mem, XSAVE],
];

/** An image that is legal most of the time. */
function image(random: Random, from: number): Uint8Array {
  const window = Uint8Array.from({ length: 1024 }, () => random.below(256));
  const bytes = window.subarray(from);
  const view = new DataView(window.buffer, from);
  if (random.oneIn(2)) view.setUint16(2, view.getUint16(2, true) & 0xff40, true);
  if (random.oneIn(4)) view.setUint16(0, 0x37f, true);
  view.setUint32(MXCSR, random.oneIn(10) ? 0x40000 : random.oneIn(3) ? 0x1f80 : random.below(0x10000), true);
  if (from === FX.from) return window;
  bytes.fill(0, HEADER, HEADER + 64);
  bytes[HEADER] = random.oneIn(10) ? random.below(256) & ~4 : random.below(4);
  if (random.oneIn(2)) {
    bytes[HEADER + 8] = random.oneIn(8) ? random.below(8) & ~4 : 3;
    bytes[HEADER + 15] = 0x80;
  }
  if (random.oneIn(6)) bytes[HEADER + random.below(64)]! |= 0x08;
  return window;
}

const program = (pair: (typeof PAIRS)[number], at: number, mask: number) => {
  const memory = (displacement: number) => MemoryOperand.createBaseDispl(Register.RBX, BigInt(displacement));
  return [
    set('rbx', at),
    set('rax', 3),
    set('rdx', 0),
    Instruction.createMem(pair[1], memory(pair[3].from)),
    set('rax', mask),
    Instruction.createMem(pair[2], memory(pair[3].to)),
    op(Code.Fninit),
  ];
};

/** Without what chips differ in: the bits of MXCSR that there are. */
function comparable(bytes: Uint8Array, offset: number): string {
  const copy = bytes.slice();
  copy[offset + MXCSR_MASK + 2] = 0;
  return Buffer.from(copy).toString('hex');
}

/** A processor may take vectors for used that are initial; the host's does after an interrupt. */
function countsMore(host: Uint8Array, ours: Uint8Array, at: number): boolean {
  const initial = (image: Uint8Array) => image.subarray(at + 160, at + 416).every((byte) => byte === 0);
  const inUse = (image: Uint8Array) => (image[at + HEADER]! & 2) !== 0;
  return at === XSAVE.to && inUse(host) && !inUse(ours) && initial(host);
}

describe.skipIf(unfit !== undefined)('images of x87 and SSE state are the host CPU’s', () => {
  let bench: GuestBench;
  beforeAll(() => {
    bench = new GuestBench();
    bench.interceptException(13);
    bench.setLong(CR4, 0x406a0n);
    bench.run([set('rax', 3), set('rdx', 0), set('rcx', 0), op(Code.Xsetbv), hlt()]);
  });
  afterAll(() => bench.close());

  it.each(PAIRS)('%s', (...pair) => {
    console.log(`${pair[0]}: SOFTCVM_SEED=${seed}, ${COUNT} images`);
    const random = new Random(seed);
    const masks: number[] = [];
    const snippets = Array.from({ length: COUNT }, (_, n): Snippet => {
      masks.push(random.below(4));
      const registers = Array.from({ length: 16 }, () => BigInt(windowAddress(n) + 1008));
      const before = {
        registers,
        flags: 0x202n,
        mxcsr: 0x1f80,
        vectors: new Uint8Array(256).fill(7),
        window: image(random, pair[3].from),
      };
      const code = assemble(program(pair, windowAddress(n), masks[n]!), 0);
      return { code, before, undefinedFlags: 0n, everUndefined: 0n, text: pair[0] };
    });
    const onHost = snippetProgram(snippets);
    const output = runOnHost(onHost);
    let saved = 0;
    snippets.forEach(({ before }, n) => {
      const want = onHost.outcome(n, output);
      bench.memory.write(bench.spa(DATA), before.window);
      const exit = bench.run([...program(pair, DATA, masks[n]!), hlt()]);
      expect([n, exit === GENERAL_PROTECTION_EXIT]).toEqual([n, want.signal !== 0]);
      const got = new Uint8Array(1024);
      bench.memory.read(bench.spa(DATA), got);
      if (countsMore(want.window, got, pair[3].to)) return;
      expect([n, comparable(got, pair[3].to)]).toEqual([n, comparable(want.window, pair[3].to)]);
      if (want.signal === 0) saved++;
    });
    expect(saved).toBeGreaterThan(COUNT / 4);
    expect(bench.read(CODE)).not.toBe(0n);
  });
});
