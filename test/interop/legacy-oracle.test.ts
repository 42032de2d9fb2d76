/**
 * The host's CPU judges our 32-bit code: instructions on registers and the stack, with random registers and flags, run in compatibility mode
 * on both (on the host by a far call out of 64-bit code). SOFTCVM_SEED repeats a run.
 */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';
import { describe, expect, it } from 'vitest';
import { CODE, GuestBench, RAX, RFLAGS, RIP, RSP, STACK } from '../hardware/cpu/guest-bench.ts';
import { hostUnfit, hostVendor, runOnHost } from '../oracle/host-cpu.ts';
import { Random } from '../oracle/random.ts';
import { type Snippet, WINDOW_BYTES } from '../oracle/snippet.ts';
import { snippetProgram, windowAddress } from '../oracle/snippet-program.ts';

const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;
const seed = Number(process.env['SOFTCVM_SEED'] ?? Math.floor(Math.random() * 1e9));
const ROUNDS = 40;
const RSP_NUMBER = 4;
/** CF PF AF ZF SF DF OF */
const COMPARED = 0xcd5n;
const COMPATIBILITY_CODE = 0x23;

/** By name: bytes of 32-bit code. */
const CASES: Readonly<Record<string, readonly number[]>> = {
  daa: [0x27],
  das: [0x2f],
  aaa: [0x37],
  aas: [0x3f],
  aam: [0xd4, 0x0a],
  'aam 7': [0xd4, 0x07],
  aad: [0xd5, 0x0a],
  salc: [0xd6],
  'inc eax; dec cx': [0x40, 0x66, 0x49],
  'pusha; popa': [0x60, 0x61],
  'pushaw; popaw': [0x66, 0x60, 0x66, 0x61],
  'pusha; add [esp+28], edx; popa': [0x60, 0x01, 0x54, 0x24, 0x1c, 0x61],
  'push ecx; push dx; pop ax; pop ebx': [0x51, 0x66, 0x52, 0x66, 0x58, 0x5b],
  'enter 8, 0; mov [ebp-4], eax; mov edx, [esp+4]; leave': [
    ...[0xc8, 8, 0, 0, 0x89, 0x45, 0xfc, 0x8b, 0x54, 0x24, 4, 0xc9],
  ],
  'enter 4, 3; leave': [0x89, 0xe5, 0xc8, 4, 0, 3, 0xc9],
  'lea eax, [bx+si+0x10]': [0x67, 0x8d, 0x40, 0x10],
  'lea ecx, [bp+di-2]': [0x67, 0x8d, 0x4b, 0xfe],
  'arpl ax, cx': [0x63, 0xc8],
  'call 1f; 1: pop eax; sub eax, esp; xor eax, eax': [0xe8, 0, 0, 0, 0, 0x58, 0x31, 0xc0],
  'mov ecx, 3; 1: add edx, eax; loop 1b': [0xb9, 3, 0, 0, 0, 0x01, 0xc2, 0xe2, 0xfc],
  'jcxz 1f; inc eax; 1:': [0x67, 0xe3, 0x01, 0x40],
  'jle 1f; inc eax; 1: seto bl': [0x7e, 0x01, 0x40, 0x0f, 0x90, 0xc3],
  'adc eax, ecx; sbb dl, bh': [0x11, 0xc8, 0x18, 0xfa],
  'cwde; cdq; bswap ebx': [0x98, 0x99, 0x0f, 0xcb],
  'shld eax, edx, cl; rcr bl, 3': [0x0f, 0xa5, 0xd0, 0xc0, 0xdb, 3],
  'cmovs eax, esi; movsx ecx, dl': [0x0f, 0x48, 0xc6, 0x0f, 0xbe, 0xca],
  'pushf; pop eax; and eax, 0xcd5': [0x9c, 0x58, 0x25, 0xd5, 0x0c, 0, 0],
  'imul eax, ebx, -7; mul cl': [0x6b, 0xc3, 0xf9, 0xf6, 0xe1],
};

const unfit =
  hostUnfit() ?? (hostVendor() === 'AMD' ? undefined : "flags that the manual leaves open are AMD's here");
if (unfit) console.log(`32-bit oracle not asked: ${unfit}`);

interface Case {
  readonly name: string;
  readonly code: readonly number[];
  readonly snippet: Snippet;
}

function cases(): Case[] {
  const random = new Random(seed);
  const list: Case[] = [];
  for (const [name, code] of Object.entries(CASES)) {
    for (let round = 0; round < ROUNDS; round++) list.push(makeCase(random, list.length, name, code));
  }
  return list;
}

/** The window holds a far pointer, and the code behind it. */
function makeCase(random: Random, n: number, name: string, code: readonly number[]): Case {
  const at = windowAddress(n);
  const window = new Uint8Array(WINDOW_BYTES);
  const view = new DataView(window.buffer);
  view.setUint32(0, at + 16, true);
  view.setUint16(4, COMPATIBILITY_CODE, true);
  window.set([...code, 0xcb], 16);
  const registers = Array.from({ length: 16 }, () => random.u64() & 0xffffffffn);
  if (random.oneIn(2)) registers[0] = BigInt(random.below(0x300));
  registers[RSP_NUMBER] = BigInt(at + 512);
  const pointer = new Uint8Array(4);
  new DataView(pointer.buffer).setUint32(0, at, true);
  const flags = (random.u64() & 0x8d5n) | 0x202n;
  const before = { registers, flags, vectors: new Uint8Array(256), mxcsr: 0x1f80, window };
  const open = undefinedFlags(code);
  const call = Uint8Array.from([0xff, 0x1c, 0x25, ...pointer]);
  return {
    name,
    code,
    snippet: { code: call, before, undefinedFlags: open, everUndefined: open, text: name },
  };
}

function undefinedFlags(code: readonly number[]): bigint {
  const bits = [
    [1, 0x800n],
    [2, 0x80n],
    [4, 0x40n],
    [8, 0x10n],
    [16, 0x1n],
    [32, 0x4n],
  ] as const;
  const decoder = new iced.Decoder(32, Uint8Array.from(code), iced.DecoderOptions.None);
  let open = 0n;
  while (decoder.canDecode) {
    const instruction = decoder.decode();
    const written = instruction.rflagsWritten | instruction.rflagsCleared | instruction.rflagsSet;
    for (const [bit, flag] of bits) {
      if ((written & bit) !== 0 && instruction.rflagsRead === 0) open &= ~flag;
      if ((instruction.rflagsUndefined & bit) !== 0) open |= flag;
    }
    instruction.free();
  }
  decoder.free();
  return open;
}

describe.skipIf(unfit !== undefined)('32-bit code', () => {
  it(`does what the host's CPU does`, () => {
    console.log(`SOFTCVM_SEED=${seed}`);
    const list = cases();
    const program = snippetProgram(list.map(({ snippet }) => snippet));
    const output = runOnHost(program);
    const bench = new GuestBench();
    const wrong: string[] = [];
    for (const [n, { name, code, snippet }] of list.entries()) {
      const want = program.outcome(n, output);
      expect(want.signal).toBe(0);
      const { registers, flags } = snippet.before;
      bench.segment(0x10, 0x18, 0xc9b);
      bench.setWord(0x5c, 3);
      for (let r = 0; r < 8; r++) bench.core.gpr[r] = registers[r]!;
      bench.setLong(RAX, registers[0]!);
      bench.setLong(RSP, BigInt(STACK));
      bench.setLong(RFLAGS, flags);
      [...code, 0xf4].forEach((byte, k) => {
        bench.memory.write(bench.spa(CODE + k), Uint8Array.of(byte));
      });
      bench.setLong(RIP, BigInt(CODE));
      expect(bench.run(), name).toBe(0x78);
      const compare = (what: string, a: bigint, b: bigint) => {
        if (a !== b) wrong.push(`${name} ${what}: got ${a.toString(16)}, want ${b.toString(16)}`);
      };
      const usesFrame = name.startsWith('enter 4');
      for (let r = 0; r < 8; r++) {
        if (r === RSP_NUMBER || (r === 5 && usesFrame)) continue;
        const got = r === 0 ? bench.long(RAX) : bench.core.gpr[r]!;
        compare(`register ${r}`, got & 0xffffffffn, want.registers[r]! & 0xffffffffn);
      }
      const mask = COMPARED & ~snippet.undefinedFlags;
      compare('flags', bench.long(RFLAGS) & mask, want.flags & mask);
      expect(bench.long(RSP)).toBe(BigInt(STACK));
    }
    bench.close();
    expect(wrong.slice(0, 20)).toEqual([]);
  });
});
