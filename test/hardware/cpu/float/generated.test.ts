/**
 * Floating point in generated code against the slow path, which is the reference: same results, same MXCSR, same #XM, whatever the operands; and
 * ordinary numbers never need the slow path.
 */
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { executeFloat, floatNumber } from '../../../../src/hardware/cpu/float/instructions.ts';
import { RECORD, SYSTEM } from '../../../../src/hardware/cpu/record.ts';
import { LEAVE, STATE } from '../../../../src/hardware/cpu/state.ts';
import { FlatMachine } from '../../../oracle/flat-machine.ts';
import { withFloats } from '../../../oracle/float-values.ts';
import { Random } from '../../../oracle/random.ts';
import { Code, iced, Register } from '../assembler.ts';

const { Encoder, Instruction, MemoryOperand } = iced;
const CODE_AT = 0x10000n;
const DATA_AT = 0x2000n;
/** Bytes for one case's code, a HLT behind it. */
const STRIDE = 32;
const RAX = Register.RAX;

/** What a case runs: xmm0 or rax with xmm1, rdx or the 16 bytes at [rsi]; perhaps an immediate. */
interface Case {
  readonly title: string;
  readonly bytes: readonly number[];
  readonly number: number;
  readonly immediate: number;
  readonly to: 'vector' | 'general';
  readonly from: 'vector' | 'general' | 'memory';
}

function encode(instruction: InstanceType<typeof Instruction>): number[] {
  const encoder = new Encoder(64);
  encoder.encode(instruction, CODE_AT);
  return [...encoder.takeBuffer()];
}

/** The forms of one instruction code: registers, and memory at [rsi]. */
function casesOf(name: string, slow: string, immediates: readonly (number | undefined)[]): Case[] {
  const code = (Code as unknown as Record<string, number>)[name]!;
  const to = /^\w+_r(32|64)_xmm/.test(name) ? 'general' : 'vector';
  const general = /rm(32|64)$/.exec(name);
  const destination = to === 'vector' ? Register.XMM0 : name.includes('r64') ? RAX : Register.EAX;
  const source = general ? (general[1] === '64' ? Register.RDX : Register.EDX) : Register.XMM1;
  const memory = () => MemoryOperand.createBase(Register.RSI);
  return immediates.flatMap((immediate) => {
    const [registers, loaded] =
      immediate === undefined
        ? [
            Instruction.createRegReg(code, destination, source),
            Instruction.createRegMem(code, destination, memory()),
          ]
        : [
            Instruction.createRegRegI32(code, destination, source, immediate),
            Instruction.createRegMemI32(code, destination, memory(), immediate),
          ];
    const shared = { number: floatNumber(slow), immediate: immediate ?? 0, to } as const;
    const title = immediate === undefined ? name : `${name} ${immediate}`;
    return [
      { ...shared, title, bytes: encode(registers), from: general ? 'general' : 'vector' },
      { ...shared, title: `${title} from memory`, bytes: encode(loaded), from: 'memory' },
    ] as const;
  });
}

const ENDS = { ss: 'xmmm32', sd: 'xmmm64', ps: 'xmmm128', pd: 'xmmm128' } as const;
const named = (stem: string, ends: readonly (keyof typeof ENDS)[], immediates?: readonly number[]): Case[] =>
  ends.flatMap((end) =>
    casesOf(
      `${stem}${end}_xmm_${ENDS[end]}${immediates ? '_imm8' : ''}`,
      `${stem}${end}`,
      immediates ?? [undefined],
    ),
  );
const all = ['ss', 'sd', 'ps', 'pd'] as const;
const one = (name: string, slow = name.split('_')[0]!): Case[] => casesOf(name, slow, [undefined]);

const CASES: readonly Case[] = [
  ...['Add', 'Sub', 'Mul', 'Div', 'Sqrt', 'Min', 'Max'].flatMap((stem) => named(stem, all)),
  ...['Addsub', 'Hadd', 'Hsub'].flatMap((stem) => named(stem, ['ps', 'pd'])),
  ...named('Cmp', all, [0, 1, 2, 3, 4, 5, 6, 7]),
  ...named('Round', all, [0, 1, 2, 3, 4, 8]),
  ...['Comi', 'Ucomi'].flatMap((stem) => named(stem, ['ss', 'sd'])),
  ...['Cvtss2sd_xmm_xmmm32', 'Cvtsd2ss_xmm_xmmm64', 'Cvtps2pd_xmm_xmmm64', 'Cvtpd2ps_xmm_xmmm128'].flatMap(
    (n) => one(n),
  ),
  ...['Cvtdq2ps', 'Cvtps2dq', 'Cvttps2dq', 'Cvtpd2dq', 'Cvttpd2dq'].flatMap((n) => one(`${n}_xmm_xmmm128`)),
  ...one('Cvtdq2pd_xmm_xmmm64'),
  ...['ss', 'sd'].flatMap((end) =>
    ['32', '64'].flatMap((bits) => [
      ...one(`Cvtsi2${end}_xmm_rm${bits}`, `Cvtsi2${end} ${bits}`),
      ...one(`Cvt${end}2si_r${bits}_xmmm${end === 'ss' ? 32 : 64}`, `Cvt${end}2si ${bits}`),
      ...one(`Cvtt${end}2si_r${bits}_xmmm${end === 'ss' ? 32 : 64}`, `Cvtt${end}2si ${bits}`),
    ]),
  ),
];

let slowCalls = 0;
const machine = new FlatMachine({
  system: (it, record) => {
    if (it.memory.words[(record + RECORD.SYSTEM) >> 2] !== SYSTEM.FLOAT) return LEAVE.VMEXIT;
    slowCalls++;
    const number = it.memory.bytes[record + RECORD.NUMBER]!;
    return executeFloat(it.memory, it.state, { record, number }) ? 0 : it.raise(19);
  },
});
machine.addPage(DATA_AT);
afterAll(() => machine.close());

const places = new Map(CASES.map((it, n) => [it, CODE_AT + BigInt(STRIDE * n)]));
for (let at = 0; at < CASES.length * STRIDE; at += 4096) machine.addPage(CODE_AT + BigInt(at));
for (const [{ bytes }, at] of places) machine.put(at, [...bytes, 0xf4]);

interface Outcome {
  readonly vector: string;
  readonly general: bigint;
  readonly mxcsr: number;
  readonly flags: bigint;
  readonly stopped: boolean;
}

interface Start {
  readonly destination: Uint8Array;
  readonly source: Uint8Array;
  readonly mxcsr: number;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const low64 = (bytes: Uint8Array): bigint =>
  new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);

/** The instruction on our core. */
function run(it: Case, { destination, source, mxcsr }: Start): Outcome {
  const { bytes } = machine.memory;
  bytes.set(destination, machine.state + STATE.XMM);
  bytes.set(source, machine.state + STATE.XMM + 16);
  machine.put(DATA_AT, [...source]);
  machine.setRegister(0, 0xdead_beef_dead_beefn);
  machine.setRegister(2, low64(source));
  machine.setRegister(6, DATA_AT);
  machine.setWord(STATE.MXCSR, mxcsr);
  machine.flags = 0n;
  machine.rip = places.get(it)!;
  const reason = machine.run();
  return {
    vector: hex(bytes.subarray(machine.state + STATE.XMM, machine.state + STATE.XMM + 16)),
    general: machine.register(0),
    mxcsr: machine.word(STATE.MXCSR),
    flags: machine.flags & 0x8d5n,
    stopped: reason === LEAVE.EXCEPTION,
  };
}

/** The same by the slow path alone, on a state block and a record of our own. */
function reference(it: Case, { destination, source, mxcsr }: Start): Outcome {
  const buffer = new ArrayBuffer(0x1000);
  const memory = {
    words: new Int32Array(buffer),
    longs: new BigUint64Array(buffer),
    bytes: new Uint8Array(buffer),
  };
  const record = 0x800;
  memory.bytes.set(destination, STATE.XMM);
  memory.bytes.set(source, STATE.XMM + 16);
  memory.longs[STATE.GPR / 8] = 0xdead_beef_dead_beefn;
  memory.longs[STATE.FLAG_ZR / 8] = 1n;
  memory.longs[STATE.FLAG_SR / 8] = 1n;
  memory.words[STATE.MXCSR / 4] = mxcsr;
  memory.words[(record + RECORD.A0) / 4] = it.to === 'vector' ? STATE.XMM : STATE.GPR;
  memory.words[(record + RECORD.A1) / 4] = STATE.XMM + 16;
  memory.words[(record + RECORD.A2) / 4] = record + RECORD.IMMEDIATE;
  memory.bytes[record + RECORD.IMMEDIATE] = it.immediate;
  const done = executeFloat(memory, 0, { record, number: it.number });
  const zero = memory.longs[STATE.FLAG_ZR / 8] === 0n;
  const parity = memory.longs[STATE.FLAG_SR / 8] === 0n;
  const carry = memory.longs[STATE.FLAG_CV / 8]! >> 63n;
  return {
    vector: hex(memory.bytes.subarray(STATE.XMM, STATE.XMM + 16)),
    general: memory.longs[STATE.GPR / 8]!,
    mxcsr: memory.words[STATE.MXCSR / 4]!,
    flags: (zero ? 0x40n : 0n) | (parity ? 4n : 0n) | carry,
    stopped: !done,
  };
}

/** Numbers that like edges, on which instructions of one width or the other meet; mostly with MXCSR as at reset. */
function start(seed: number): Start {
  const random = new Random(seed);
  const before = withFloats(
    { registers: [], flags: 0n, vectors: new Uint8Array(64), mxcsr: 0, window: new Uint8Array(0) },
    random,
  );
  const usual = 0x1f80 | random.pick([0, 0, 0x40, 0x8000, 0x8040]) | random.pick([0, 0x20, random.below(64)]);
  return {
    destination: before.vectors.slice(0, 16),
    source: before.vectors.slice(16, 32),
    mxcsr: random.oneIn(4) ? before.mxcsr : usual,
  };
}

describe('generated code gives what the slow path gives', () => {
  it.each(CASES.map((it) => [it.title, it] as const))('%s', (_, one) => {
    fc.assert(
      fc.property(fc.nat(0x7fffffff), (seed) => {
        const from = start(seed);
        expect(run(one, from)).toEqual(reference(one, from));
      }),
      { numRuns: 60 },
    );
  });
});

/** Where a condition that is a little too weak would let a flag slip: instruction, operands, MXCSR before and after. */
const EDGES: readonly [string, string, number, number, number, number][] = [
  [
    'a product that rounds up to the smallest normal',
    'Mulsd_xmm_xmmm64',
    2 ** -1022,
    1 - 2 ** -53,
    0x1fa0,
    0x1fb0,
  ],
  ['the same, negative', 'Mulsd_xmm_xmmm64', -(2 ** -1022), 1 - 2 ** -53, 0x1fa0, 0x1fb0],
  ['the same in single precision', 'Mulss_xmm_xmmm32', 2 ** -126, 1 - 2 ** -24, 0x1fa0, 0x1fb0],
  [
    'a double that rounds up to the smallest normal single',
    'Cvtsd2ss_xmm_xmmm64',
    0,
    2 ** -126 * (1 - 2 ** -40),
    0x1fa0,
    0x1fa0,
  ],
  [
    'one that is tiny once it is rounded',
    'Cvtsd2ss_xmm_xmmm64',
    0,
    2 ** -126 * (1 - 2 ** -24),
    0x1fa0,
    0x1fb0,
  ],
  [
    'a product whose error is below all denormals',
    'Mulsd_xmm_xmmm64',
    (1 + 2 ** -52) * 2 ** -500,
    (1 + 2 ** -52) * 2 ** -500,
    0x1f80,
    0x1fa0,
  ],
  [
    'the same in single precision',
    'Mulss_xmm_xmmm32',
    (1 + 2 ** -23) * 2 ** -53,
    (1 + 2 ** -23) * 2 ** -53,
    0x1f80,
    0x1fa0,
  ],
  [
    'a factor too large to be split',
    'Mulsd_xmm_xmmm64',
    (1 + 2 ** -52) * 2 ** 1000,
    1 + 2 ** -52,
    0x1f80,
    0x1fa0,
  ],
  ['a sum that overflows', 'Addsd_xmm_xmmm64', Number.MAX_VALUE, Number.MAX_VALUE, 0x1fa0, 0x1fa8],
  [
    'a difference that is an exact denormal',
    'Subsd_xmm_xmmm64',
    2 ** -1022 * 1.5,
    2 ** -1022,
    0x1f80,
    0x1f80,
  ],
  ['the same under FTZ', 'Subsd_xmm_xmmm64', 2 ** -1022 * 1.5, 2 ** -1022, 0x9fa0, 0x9fb0],
  ['a quotient that underflows', 'Divsd_xmm_xmmm64', 2 ** -1000, 2 ** 1000, 0x1fa0, 0x1fb0],
];

describe('at the edges of what generated code decides', () => {
  it.each(EDGES)('%s (%s)', (_, title, a, b, before, after) => {
    const one = CASES.find((it) => it.title === title)!;
    const put = (x: number) =>
      /ss_/.test(title) && !title.startsWith('Cvt')
        ? new Uint8Array(Float32Array.of(x, 0, 0, 0).buffer)
        : new Uint8Array(Float64Array.of(x, 0).buffer);
    const from = { destination: put(a), source: put(b), mxcsr: before };
    const got = run(one, from);
    expect(got).toEqual(reference(one, from));
    expect(got.mxcsr).toBe(after);
  });
  it.each([
    ['Cvtsi2sd_xmm_rm64', 2n ** 53n + 1n, 0x1fa0],
    ['Cvtsi2sd_xmm_rm64', 2n ** 63n - 1n, 0x1fa0],
    ['Cvtsi2sd_xmm_rm64', -(2n ** 63n), 0x1f80],
    ['Cvtsi2ss_xmm_rm64', 2n ** 24n + 1n, 0x1fa0],
    ['Cvtsi2ss_xmm_rm32', 2n ** 24n + 2n, 0x1f80],
    ['Cvtsi2ss_xmm_rm32', 0x7fffffffn, 0x1fa0],
  ])('%s of %d', (title, integer, after) => {
    const one = CASES.find((it) => it.title === title)!;
    const source = new Uint8Array(BigInt64Array.of(integer, 0n).buffer);
    const from = { destination: new Uint8Array(16), source, mxcsr: 0x1f80 };
    const got = run(one, from);
    expect(got).toEqual(reference(one, from));
    expect(got.mxcsr).toBe(after);
  });
  it.each([
    ['Cvttsd2si_r64_xmmm64', 2 ** 63, 0x1fa1],
    ['Cvttsd2si_r64_xmmm64', -(2 ** 63), 0x1fa0],
    ['Cvttsd2si_r32_xmmm64', 2 ** 31, 0x1fa1],
    ['Cvttsd2si_r32_xmmm64', 2147483647.75, 0x1fa0],
    ['Cvtsd2si_r32_xmmm64', 2147483647.75, 0x1fa1],
    ['Cvttsd2si_r32_xmmm64', -2147483648.75, 0x1fa0],
    ['Cvtsd2si_r32_xmmm64', -2147483648.75, 0x1fa1],
  ])('%s of %d', (title, x, after) => {
    const one = CASES.find((it) => it.title === title)!;
    const source = new Uint8Array(Float64Array.of(x, 0).buffer);
    const from = { destination: new Uint8Array(16), source, mxcsr: 0x1fa0 };
    const got = run(one, from);
    expect(got).toEqual(reference(one, from));
    expect(got.mxcsr).toBe(after);
  });
});

describe('the slow path is not needed', () => {
  const lanes = (bits: 32 | 64, values: readonly number[]): Uint8Array =>
    new Uint8Array(bits === 32 ? Float32Array.from(values).buffer : Float64Array.from(values).buffer);
  const width = (title: string): 32 | 64 =>
    /^Cvtt?[sp]s2|^[A-BD-Z]\w*[sp]s_xmm|^C(mp|omi)[sp]s_/.test(title) ? 32 : 64;
  const numeric = CASES.filter(({ title }) => !/^Cvt(si2|dq2)/.test(title));
  const exactOnes = numeric.filter(({ title }) => !/^Sqrt|^Div/.test(title));
  const eight = { minLength: 8, maxLength: 8 };

  /** Runs on the first and the last of the values. */
  function expectNoCall(one: Case, values: readonly number[], mxcsr: number): void {
    const before = slowCalls;
    const bits = width(one.title);
    run(one, {
      destination: lanes(bits, values.slice(0, 128 / bits)),
      source: lanes(bits, values.slice(8 - 128 / bits)),
      mxcsr,
    });
    expect(slowCalls - before).toBe(0);
  }

  it.each(numeric.map((it) => [it.title, it] as const))('for numbers once PE is set: %s', (_, one) => {
    const numbers = fc.array(fc.double({ min: 1, max: 1000, noNaN: true }), eight);
    fc.assert(
      fc.property(numbers, fc.constantFrom(0x1fa0, 0x9fe0), (values, mxcsr) =>
        expectNoCall(one, values, mxcsr),
      ),
      { numRuns: 20 },
    );
  });
  it.each(exactOnes.map((it) => [it.title, it] as const))(
    'for small integers, which are exact, while PE is clear: %s',
    (_, one) => {
      fc.assert(
        fc.property(fc.array(fc.integer({ min: -1000, max: 1000 }), eight), (values) =>
          expectNoCall(one, values, 0x1f80),
        ),
        { numRuns: 20 },
      );
    },
  );
});
