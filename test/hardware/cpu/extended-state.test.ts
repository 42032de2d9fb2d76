/** FXSAVE, the XSAVE family, XCR0 and x87 control. The images are what an EPYC wrote for the same input. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Code, hlt, onMemory, onRegister, op, Register, set } from './assembler.ts';
import { CODE, CR0, CR4, DATA, EFER, GuestBench, PT, RAX, RIP } from './guest-bench.ts';

type Instruction = ReturnType<typeof op>;
const FROM = DATA;
const TO = DATA + 0x1000;
/** The last 64 bytes before a page that is not there. */
const EDGE = DATA + 0x2000 - 64;
const HLT = 0x78;
const [UD, NM, MF, GP, PF] = [0x46, 0x47, 0x50, 0x4d, 0x4e];

let bench: GuestBench;
beforeEach(() => {
  bench = new GuestBench();
  for (const vector of [6, 7, 13, 14, 16]) bench.interceptException(vector);
  bench.setLong(CR4, 0x406a0n);
});
afterEach(() => bench.close());

const put = (at: number, hex: string) =>
  bench.memory.write(bench.spa(at), Buffer.from(hex.replaceAll(' ', ''), 'hex'));
function get(at: number, bytes: number): string {
  const into = new Uint8Array(bytes);
  bench.memory.read(bench.spa(at), into);
  return Buffer.from(into).toString('hex');
}
const plain = (hex: string) => hex.replaceAll(' ', '');
const fill = (at: number, bytes: number, value: number) =>
  bench.memory.write(bench.spa(at), new Uint8Array(bytes).fill(value));
/** The instruction on memory at `at`; EDX:EAX is `mask`. */
const on = (code: number, at: number, mask = 0): Instruction[] => [
  set('rax', mask),
  set('rdx', 0),
  set('rcx', at),
  onMemory(code, 'rcx'),
];
const vectors = () => bench.core.xmm;
function setVectors(value: number): void {
  vectors().fill(value);
}

/** FCW, FSW, FTW, FOP, error pointers, MXCSR 0x1f80; ST(0) and ST(1). */
const IMAGE =
  '67c66973 51ff4aec 29cdbaabf2fbe346 7cc254f81be8e78d 801f0000 339fc99a' +
  '66320db73158a35a255d051758e95ed4 abb2cdc69bb454110e827441213ddc87';
const WRITTEN =
  '6706e9f3 51004a04 29cdbaabf2fbffff 7cc254f81be8ffff 801f0000 ffff0000' +
  '66320db73158a35a255d000000000000 abb2cdc69bb454110e82000000000000';
const WRITTEN_32 = '6706e9f3 51004a04 29cdbaabf2fb0000 7cc254f81be80000 801f0000 ffff0000';

describe('FXSAVE and FXRSTOR', () => {
  it.each([
    ['with REX.W', Code.Fxrstor64_m512byte, Code.Fxsave64_m512byte, WRITTEN],
    ['without', Code.Fxrstor_m512byte, Code.Fxsave_m512byte, WRITTEN_32],
  ])('%s keep what the processor keeps', (_, restore, save, written) => {
    put(FROM, IMAGE);
    fill(FROM + 160, 256, 0x5a);
    fill(TO, 512, 0xaa);
    expect(bench.run([...on(restore, FROM), ...on(save, TO), hlt()])).toBe(HLT);
    expect(get(TO, plain(written).length / 2)).toBe(plain(written));
    expect(get(TO + 160, 256)).toBe('5a'.repeat(256));
    expect(get(TO + 416, 96)).toBe('aa'.repeat(96));
    expect(vectors()).toEqual(new Uint8Array(256).fill(0x5a));
  });
  it('drop error pointers of exceptions that are masked', () => {
    put(FROM, `ffffffff ff00ffff ffffffffffffffff ffffffffffffffff 801f0000`);
    bench.run([...on(Code.Fxrstor64_m512byte, FROM), ...on(Code.Fxsave64_m512byte, TO), hlt()]);
    expect(get(TO, 24)).toBe(plain('7f1f7f7f ff000000 0000000000000000 0000000000000000'));
  });
  it('leave the vectors alone at CPL 0 with EFER.FFXSR', () => {
    bench.setLong(EFER, 0x5d01n);
    setVectors(0x11);
    fill(FROM, 512, 0);
    fill(TO, 512, 0xaa);
    bench.run([...on(Code.Fxrstor64_m512byte, FROM), ...on(Code.Fxsave64_m512byte, TO), hlt()]);
    expect(vectors()).toEqual(new Uint8Array(256).fill(0x11));
    expect(get(TO + 160, 256)).toBe('aa'.repeat(256));
  });
  it.each([
    ['CR0.TS', 0x8001003bn, FROM, NM],
    ['CR0.EM', 0x80010037n, FROM, NM],
    ['a misaligned image', 0x80010033n, FROM + 8, GP],
    ['a page that is missing', 0x80010033n, 0x4000_0000, PF],
    ['CR0.TS before a misaligned image', 0x8001003bn, FROM + 8, NM],
  ])('raise with %s', (_, cr0, at, exit) => {
    bench.setLong(CR0, cr0);
    expect(bench.run([...on(Code.Fxsave64_m512byte, at), hlt()])).toBe(exit);
    expect(bench.run([...on(Code.Fxrstor64_m512byte, at), hlt()])).toBe(exit);
  });
  it('MXCSR with a reserved bit is #GP, and nothing is taken', () => {
    fill(FROM, 512, 0x33);
    put(FROM + 24, '801f0100');
    setVectors(0x11);
    expect(bench.run([...on(Code.Fxrstor64_m512byte, FROM), hlt()])).toBe(GP);
    expect(vectors()).toEqual(new Uint8Array(256).fill(0x11));
    bench.run([...on(Code.Fxsave64_m512byte, TO), hlt()]);
    expect(get(TO, 8)).toBe('7f03000000000000');
  });
  it('an image whose second page is missing changes neither memory nor registers', () => {
    bench.write(PT + ((DATA + 0x2000) >> 12) * 8, 0);
    fill(EDGE, 64, 0xaa);
    setVectors(0x11);
    expect(bench.run([...on(Code.Fxsave64_m512byte, EDGE), hlt()])).toBe(PF);
    // AMD asks for the last byte of the 512 first.
    expect(bench.long(0x80)).toBe(BigInt(DATA + 0x21bf));
    expect(get(EDGE, 64)).toBe('aa'.repeat(64));
    put(EDGE, '00000000 00000000 0000000000000000 0000000000000000 801f0000');
    expect(bench.run([...on(Code.Fxrstor64_m512byte, EDGE), hlt()])).toBe(PF);
    expect(vectors()).toEqual(new Uint8Array(256).fill(0x11));
  });
});

describe('XCR0', () => {
  const xsetbv = (value: number, number = 0) => [
    set('rax', value),
    set('rdx', 0),
    set('rcx', number),
    op(Code.Xsetbv),
  ];
  const xgetbv = (number: number) => [set('rcx', number), op(Code.Xgetbv), hlt()];
  it('is 1 at first, and what XSETBV sets', () => {
    expect(bench.run(xgetbv(0))).toBe(HLT);
    expect(bench.long(RAX)).toBe(1n);
    expect(bench.run([...xsetbv(3), ...xgetbv(0)])).toBe(HLT);
    expect(bench.long(RAX)).toBe(3n);
    expect(bench.core.gpr[2]).toBe(0n);
  });
  it.each([
    ['without x87', 2, 0],
    ['nothing', 0, 0],
    ['AVX', 7, 0],
    ['bit 63', 0, 0],
    ['another register', 3, 1],
  ])('%s is #GP', (name, value, number) => {
    const program = [
      set('rax', value),
      set('rdx', name === 'bit 63' ? 0x80000000 : 0),
      set('rcx', number),
      op(Code.Xsetbv),
    ];
    expect(bench.run([...program, hlt()])).toBe(GP);
  });
  it('XGETBV of 1 says what is in use; of 2 is #GP', () => {
    setVectors(0);
    expect(bench.run([...xsetbv(3), ...xgetbv(1)])).toBe(HLT);
    expect(bench.long(RAX)).toBe(0n);
    vectors()[255] = 1;
    bench.run(xgetbv(1));
    expect(bench.long(RAX)).toBe(2n);
    expect(bench.run(xgetbv(2))).toBe(GP);
  });
  it('is #UD without CR4.OSXSAVE', () => {
    bench.setLong(CR4, 0x6a0n);
    expect(bench.run(xgetbv(0))).toBe(UD);
    expect(bench.run([...xsetbv(3), hlt()])).toBe(UD);
    for (const code of [Code.Xsave_mem, Code.Xrstor_mem, Code.Xsavec_mem, Code.Xsaveopt_mem])
      expect(bench.run([...on(code, FROM, 3), hlt()])).toBe(UD);
  });
  it('cannot be set by a user, intercepted or not', () => {
    bench.becomeUser();
    expect(bench.run([...xsetbv(3), hlt()])).toBe(GP);
    bench.intercept(141);
    expect(bench.run([...xsetbv(3), hlt()])).toBe(GP);
  });
  it('XSETBV is an exit where the host wants it, before its value is looked at', () => {
    bench.intercept(141);
    expect(bench.run([...xsetbv(2), hlt()])).toBe(0x8d);
  });
});

describe('XSAVE and its like', () => {
  const both = [set('rax', 3), set('rdx', 0), set('rcx', 0), op(Code.Xsetbv)];
  const image = (header: string) => {
    fill(TO, 576, 0xaa);
    put(TO + 512, header.padEnd(128, '0'));
  };

  it('XSAVE writes what is asked for, and keeps other bits of the header', () => {
    image('f8000000000000550000000000000000aa');
    setVectors(0x22);
    expect(bench.run([...both, ...on(Code.Xsave64_mem, TO, 3), hlt()])).toBe(HLT);
    expect(get(TO, 32)).toBe(plain('7f030000 00000000 0000000000000000 0000000000000000 801f0000 ffff0000'));
    expect(get(TO + 160, 256)).toBe('22'.repeat(256));
    expect(get(TO + 416, 96)).toBe('aa'.repeat(96));
    expect(get(TO + 512, 17)).toBe('fa000000000000550000000000000000aa');
  });
  it.each([
    [2, 'aa'.repeat(24), '801f0000ffff0000', 'fa', '22'],
    [1, `7f03${'00'.repeat(22)}`, 'aa'.repeat(8), 'f8', 'aa'],
    [0, 'aa'.repeat(24), 'aa'.repeat(8), 'f8', 'aa'],
  ])('XSAVE of components %x alone', (mask, x87, mxcsr, header, xmm) => {
    image('f8');
    setVectors(0x22);
    bench.run([...both, ...on(Code.Xsave64_mem, TO, mask), hlt()]);
    expect([get(TO, 24), get(TO + 24, 8), get(TO + 512, 1), get(TO + 160, 1)]).toEqual([
      x87,
      mxcsr,
      header,
      xmm,
    ]);
  });
  it('XSAVEOPT leaves out what is not in use', () => {
    image('03');
    setVectors(0x22);
    bench.run([...both, ...on(Code.Xsaveopt64_mem, TO, 3), hlt()]);
    expect([get(TO, 2), get(TO + 24, 8), get(TO + 512, 1), get(TO + 160, 1)]).toEqual([
      'aaaa',
      '801f0000ffff0000',
      '02',
      '22',
    ]);
  });
  it('XSAVEC says its format, and counts MXCSR to SSE', () => {
    image('ff'.repeat(24));
    setVectors(0);
    bench.run([...both, ...on(Code.Xsavec64_mem, TO, 3), hlt()]);
    expect(get(TO + 512, 24)).toBe(plain('0000000000000000 0300000000000080 ffffffffffffffff'));
    expect(get(TO, 32)).toBe('aa'.repeat(32));
    bench.core.mxcsr = 0x1fc0;
    bench.run([...both, ...on(Code.Xsavec64_mem, TO, 3), hlt()]);
    expect(get(TO + 512, 1)).toBe('02');
    expect(get(TO + 24, 8)).toBe('c01f0000ffff0000');
    expect(get(TO + 160, 256)).toBe('00'.repeat(256));
  });
  it('XRSTOR takes back what XSAVEC and XSAVE wrote', () => {
    for (const code of [Code.Xsavec64_mem, Code.Xsave64_mem]) {
      image('00');
      setVectors(0x77);
      bench.core.mxcsr = 0x1f81;
      bench.run([...both, ...on(code, TO, 3), hlt()]);
      setVectors(0x11);
      bench.core.mxcsr = 0x1f80;
      expect(bench.run([...on(Code.Xrstor64_mem, TO, 3), hlt()])).toBe(HLT);
      expect(vectors()).toEqual(new Uint8Array(256).fill(0x77));
      expect(bench.core.mxcsr).toBe(0x1f81);
    }
  });

  /** XSTATE_BV, XCOMP_BV, the word behind them; EDX:EAX; MXCSR in memory; then vectors' bytes and MXCSR, or the exit. */
  const rules: readonly [string, string, number, string, [number, number] | number][] = [
    ['standard, both', '03', 3, 'c01f0000', [0x33, 0x1fc0]],
    ['standard, no SSE: initial, but MXCSR is there', '01', 3, 'c01f0000', [0, 0x1fc0]],
    ['standard, SSE not asked for', '03', 1, 'c01f0000', [0x11, 0x1fa0]],
    ['compacted, both', '0300000000000000 0300000000000080', 3, 'c01f0000', [0x33, 0x1fc0]],
    ['compacted, no SSE: all initial', '0100000000000000 0300000000000080', 3, 'c01f0000', [0, 0x1f80]],
    ['compacted, nothing', '0000000000000000 0000000000000080', 3, 'c01f0000', [0, 0x1f80]],
    ['standard, a reserved bit of MXCSR', '03', 3, '801f0001', GP],
    ['standard, the same without SSE', '01', 3, '801f0001', GP],
    ['standard, the same and SSE not asked for', '03', 1, '801f0001', [0x11, 0x1fa0]],
    ['compacted, the same without SSE', '0100000000000000 0300000000000080', 3, '801f0001', [0, 0x1f80]],
    ['a component that XCR0 has not', '07', 3, '801f0000', GP],
    ['a format without its mark', '0300000000000000 03', 3, '801f0000', GP],
    ['standard, a reserved byte 16', '0300000000000000 0000000000000000 01', 3, '801f0000', GP],
    ['standard, byte 24 is nobody’s', `03${'00'.repeat(23)}01`, 3, '801f0000', [0x33, 0x1f80]],
    ['compacted, byte 63', `0300000000000000 0300000000000080${'00'.repeat(47)}01`, 3, '801f0000', GP],
    ['compacted, more than its format', '0300000000000000 0100000000000080', 3, '801f0000', GP],
    ['compacted, a format that XCR0 has not', '0300000000000000 0700000000000080', 3, '801f0000', GP],
  ];
  it.each(rules)('XRSTOR: %s', (_, header, mask, mxcsr, want) => {
    fill(TO, 512, 0x33);
    put(TO, '7f03000000000000');
    put(TO + 24, mxcsr);
    put(TO + 512, plain(header).padEnd(128, '0'));
    setVectors(0x11);
    bench.core.mxcsr = 0x1fa0;
    const exit = bench.run([...both, ...on(Code.Xrstor64_mem, TO, mask), hlt()]);
    if (typeof want === 'number') expect(exit).toBe(want);
    const [xmm, after] = typeof want === 'number' ? [0x11, 0x1fa0] : want;
    expect(vectors()).toEqual(new Uint8Array(256).fill(xmm));
    expect(bench.core.mxcsr).toBe(after);
  });

  it.each([
    ['CR0.TS', 0x8001003bn, TO, NM],
    ['an address that is not a multiple of 64', 0x80010033n, TO + 16, GP],
    ['a page that is missing', 0x80010033n, 0x4000_0000, PF],
  ])('raise with %s', (_, cr0, at, exit) => {
    for (const code of [Code.Xsave_mem, Code.Xsaveopt_mem, Code.Xsavec_mem, Code.Xrstor_mem]) {
      bench.setLong(CR0, cr0);
      expect(bench.run([...on(code, at, 3), hlt()])).toBe(exit);
    }
  });
  it('an area whose second page is missing changes neither memory nor registers', () => {
    bench.write(PT + ((DATA + 0x2000) >> 12) * 8, 0);
    fill(EDGE, 64, 0xaa);
    setVectors(0x11);
    for (const code of [Code.Xsave_mem, Code.Xsaveopt_mem, Code.Xsavec_mem, Code.Xrstor_mem]) {
      expect(bench.run([...both, ...on(code, EDGE, 3), hlt()])).toBe(PF);
      expect(get(EDGE, 64)).toBe('aa'.repeat(64));
    }
    expect(vectors()).toEqual(new Uint8Array(256).fill(0x11));
  });
});

describe('x87 control', () => {
  const initial = () => bench.run([op(Code.Fninit), ...on(Code.Fxsave64_m512byte, TO), hlt()]);
  it('FNINIT keeps the data registers, whose numbers count from the top again', () => {
    put(FROM, IMAGE);
    bench.run([...on(Code.Fxrstor64_m512byte, FROM), hlt()]);
    expect(initial()).toBe(HLT);
    expect(get(TO, 24)).toBe(plain('7f030000 00000000 0000000000000000 0000000000000000'));
    // FSW.TOP was 6.
    expect(get(TO + 32 + 6 * 16, 32)).toBe(
      plain(IMAGE).slice(64, 84) + '0'.repeat(12) + plain(IMAGE).slice(96, 116) + '0'.repeat(12),
    );
  });
  it('FNSTCW, FNSTSW and FNCLEX', () => {
    put(FROM, IMAGE);
    const program = [
      ...on(Code.Fxrstor64_m512byte, FROM),
      ...on(Code.Fnstcw_m2byte, TO),
      ...on(Code.Fnstsw_m2byte, TO + 2),
      op(Code.Fnclex),
      set('rax', -1n),
      onRegister(Code.Fnstsw_AX, Register.AX),
      hlt(),
    ];
    fill(TO, 8, 0xaa);
    expect(bench.run(program)).toBe(HLT);
    expect(get(TO, 8)).toBe('6706e9f3aaaaaaaa');
    expect(bench.long(RAX)).toBe(0xffffffffffff7300n);
  });
  it.each([
    ['ffff', '7f1f'],
    ['95aa', '550a'],
    ['0000', '4000'],
  ])('FLDCW of %s keeps %s', (given, kept) => {
    put(FROM, given);
    expect(
      bench.run([op(Code.Fninit), ...on(Code.Fldcw_m2byte, FROM), ...on(Code.Fnstcw_m2byte, TO), hlt()]),
    ).toBe(HLT);
    expect(get(TO, 2)).toBe(kept);
  });
  it('an exception that waits is #MF at WAIT and FLDCW, not at FNSTCW', () => {
    put(FROM, IMAGE);
    bench.run([...on(Code.Fxrstor64_m512byte, FROM), hlt()]);
    expect(bench.run([op(Code.Wait), hlt()])).toBe(MF);
    expect(bench.run([...on(Code.Fldcw_m2byte, FROM), hlt()])).toBe(MF);
    expect(bench.run([...on(Code.Fnstcw_m2byte, TO), hlt()])).toBe(HLT);
    expect(bench.run([op(Code.Fnclex), op(Code.Wait), hlt()])).toBe(HLT);
  });
  it.each([
    ['FNINIT, TS', 0x80010039n, () => [op(Code.Fninit)], NM],
    ['FNINIT, EM', 0x80010037n, () => [op(Code.Fninit)], NM],
    ['FNSTCW, EM, before its page fault', 0x80010037n, () => on(Code.Fnstcw_m2byte, 0x4000_0000), NM],
    ['WAIT, TS', 0x80010039n, () => [op(Code.Wait)], HLT],
    ['WAIT, TS and MP', 0x8001003bn, () => [op(Code.Wait)], NM],
    ['WAIT, EM', 0x80010037n, () => [op(Code.Wait)], HLT],
    ['FLD1, EM', 0x80010037n, () => [op(Code.Fld1)], NM],
    ['FLD1, TS', 0x80010039n, () => [op(Code.Fld1)], NM],
    ['FLD1', 0x80010033n, () => [op(Code.Fld1)], UD],
    ['EMMS', 0x80010033n, () => [op(Code.Emms)], UD],
  ])('%s', (_, cr0, program, exit) => {
    bench.setLong(CR0, cr0);
    expect(bench.run([...program(), hlt()])).toBe(exit);
  });
  it('an instruction that does not exist here is named in the trace', () => {
    bench.run([op(Code.Fsqrt), hlt()]);
    expect(bench.events).toContainEqual(expect.objectContaining({ what: 'undefined', why: 'Fsqrt' }));
  });
  it('a page fault of FNSTCW and FLDCW', () => {
    expect(bench.run([...on(Code.Fnstcw_m2byte, 0x4000_0000), hlt()])).toBe(PF);
    expect(bench.run([...on(Code.Fldcw_m2byte, 0x4000_0000), hlt()])).toBe(PF);
  });
});

describe('MXCSR', () => {
  it.each([
    [0x8001003bn, 0x6a0n, NM],
    [0x80010037n, 0x6a0n, UD],
    [0x80010033n, 0x4a0n, UD],
  ])('with CR0 %s and CR4 %s is not available, and memory is not looked at', (cr0, cr4, exit) => {
    bench.setLong(CR0, cr0);
    bench.setLong(CR4, cr4);
    expect(bench.run([...on(Code.Ldmxcsr_m32, 0x4000_0000), hlt()])).toBe(exit);
    expect(bench.run([...on(Code.Stmxcsr_m32, 0x4000_0000), hlt()])).toBe(exit);
    expect(bench.long(RIP)).toBe(BigInt(CODE + 30));
  });
});
