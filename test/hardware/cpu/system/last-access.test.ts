/**
 * System instructions and deliveries whose last access faults: the processor's state is as it was before (APM volume 2, 8.1.2), and so is
 * memory, but for the words below the stack pointer.
 */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { BEHIND, bytesOf, FaultBench, PAGE_FAULT_EXIT, type Registers } from '../fault-bench.ts';
import {
  CODE,
  CR2,
  CR4,
  DATA,
  GDT,
  type GuestBench,
  HANDLERS,
  RFLAGS,
  RIP,
  STACK,
  TSS,
} from '../guest-bench.ts';

const [RCX, RDX, RBX, RSP, RSI, RDI] = [1, 2, 3, 4, 6, 7] as const;
const BELOW = DATA - 8;

let bench: FaultBench;
let guest: GuestBench;
beforeEach(() => {
  bench = new FaultBench();
  guest = bench.guest;
});
afterEach(() => bench.close());

type Words = readonly (readonly [at: number, value: bigint | number])[];
type Row = [name: string, code: string, registers: Registers, cr2: number, words?: Words];

const POINTER = BigInt(HANDLERS) | (8n << 32n);
const ROWS: readonly Row[] = [
  [
    'IRETQ, SS missing',
    '48 cf',
    { [RSP]: BEHIND - 32 },
    BEHIND,
    [
      [BEHIND - 32, HANDLERS],
      [BEHIND - 24, 8],
      [BEHIND - 16, 0x2],
      [BEHIND - 8, STACK],
    ],
  ],
  ['RETFQ, CS missing', '48 cb', { [RSP]: BEHIND - 8 }, BEHIND, [[BEHIND - 8, HANDLERS]]],
  ['RETFQ imm16, CS missing', '48 ca 08 00', { [RSP]: BEHIND - 8 }, BEHIND, [[BEHIND - 8, HANDLERS]]],
  [
    'RETFQ to CPL 3, SS missing',
    '48 cb',
    { [RSP]: BEHIND - 24 },
    BEHIND,
    [
      [BEHIND - 24, HANDLERS],
      [BEHIND - 16, 0x23],
      [BEHIND - 8, STACK],
    ],
  ],
  [
    'CALLF m16:32, the second push',
    'ff 1b',
    { [RSP]: DATA + 4, [RBX]: DATA + 0x100 },
    DATA - 4,
    [[DATA + 0x100, POINTER]],
  ],
  ['CALLF m16:32, the selector', 'ff 1b', { [RBX]: BEHIND - 4 }, BEHIND],
  ['JMPF m16:32, the selector', 'ff 2b', { [RBX]: BEHIND - 4 }, BEHIND],
  ['INT 0x30, the third push', 'cd 30', { [RSP]: DATA + 16 }, BELOW],
  ['INT3, the third push', 'cc', { [RSP]: DATA + 16 }, BELOW],
  ['INT1, the first push', 'f1', { [RSP]: DATA }, BELOW],
  ['UD2, the last push', '0f 0b', { [RSP]: DATA + 32 }, BELOW],
  ['POPFQ', '9d', { [RSP]: BEHIND - 4 }, BEHIND],
  ['POP FS', '0f a1', { [RSP]: BEHIND - 4 }, BEHIND],
  ['PUSH FS', '0f a0', { [RSP]: DATA + 4 }, DATA - 4],
  ['LSS', '0f b2 03', { [RBX]: BEHIND - 4 }, BEHIND],
  ['SGDT', '0f 01 03', { [RBX]: BEHIND - 4 }, BEHIND],
  ['SIDT', '0f 01 0b', { [RBX]: BEHIND - 9 }, BEHIND],
  ['LGDT', '0f 01 13', { [RBX]: BEHIND - 4 }, BEHIND],
  ['LIDT', '0f 01 1b', { [RBX]: BEHIND - 9 }, BEHIND],
  ['MOV [rbx], FS', '8c 23', { [RBX]: BEHIND - 1 }, BEHIND],
  ['STMXCSR', '0f ae 1b', { [RBX]: BEHIND - 3 }, BEHIND],
  ['LDMXCSR', '0f ae 13', { [RBX]: BEHIND - 3 }, BEHIND],
  ['FNSTCW', 'd9 3b', { [RBX]: BEHIND - 1 }, BEHIND],
  ['FLDCW', 'd9 2b', { [RBX]: BEHIND - 1 }, BEHIND],
  ['FNSTSW', 'dd 3b', { [RBX]: BEHIND - 1 }, BEHIND],
  ['FXSAVE, the last 16 bytes', '0f ae 03', { [RBX]: BEHIND - 496 }, BEHIND + 15],
  ['FXSAVE64, the vectors', '48 0f ae 03', { [RBX]: BEHIND - 160 }, BEHIND + 351],
  ['FXSAVE, the first bytes', '0f ae 03', { [RBX]: DATA - 16 }, DATA - 16],
  ['FXRSTOR, the last 16 bytes', '0f ae 0b', { [RBX]: BEHIND - 496 }, BEHIND + 15],
  ['FXRSTOR64, the vectors', '48 0f ae 0b', { [RBX]: BEHIND - 160 }, BEHIND + 351],
  ['XSAVE, the header', '0f ae 23', { [RBX]: BEHIND - 512, 0: 3, [RDX]: 0 }, BEHIND + 63],
  ['XSAVE64, the vectors', '48 0f ae 23', { [RBX]: BEHIND - 192, 0: 3, [RDX]: 0 }, BEHIND + 383],
  ['XSAVEOPT, the header', '0f ae 33', { [RBX]: BEHIND - 512, 0: 3, [RDX]: 0 }, BEHIND + 63],
  ['XSAVEC, the header', '0f c7 23', { [RBX]: BEHIND - 512, 0: 3, [RDX]: 0 }, BEHIND + 63],
  // AMD's cores look at both ends of the area, whatever is asked for.
  ['XSAVE of nothing', '0f ae 23', { [RBX]: DATA - 64, 0: 0, [RDX]: 0 }, DATA - 64],
  ['XSAVEC of nothing, the header', '0f c7 23', { [RBX]: BEHIND - 512, 0: 0, [RDX]: 0 }, BEHIND + 63],
  ['XRSTOR, the header', '0f ae 2b', { [RBX]: BEHIND - 512, 0: 3, [RDX]: 0 }, BEHIND],
  [
    'XRSTOR of nothing',
    '0f ae 2b',
    { [RBX]: DATA - 64, 0: 0, [RDX]: 0 },
    DATA - 64,
    [0, 1, 2, 3, 4, 5, 6, 7].map((n) => [DATA + 448 + 8 * n, 0] as const),
  ],
  [
    'XRSTOR, the x87 part in the page before',
    '0f ae 2b',
    { [RBX]: DATA - 64, 0: 3, [RDX]: 0 },
    DATA - 64,
    [[DATA + 448, 3], ...[1, 2, 3, 4, 5, 6, 7].map((n) => [DATA + 448 + 8 * n, 0] as const)],
  ],
  ['INSD', '6d', { [RDI]: BEHIND - 2, [RDX]: 0x80 }, BEHIND],
  ['OUTSD', '6f', { [RSI]: BEHIND - 2, [RDX]: 0x80 }, BEHIND],
  ['REP INSB, the first element', 'f3 6c', { [RDI]: BEHIND, [RCX]: 2, [RDX]: 0x80 }, BEHIND],
  ['VERR [rbx]', '0f 00 23', { [RBX]: BEHIND - 1 }, BEHIND],
  ['LAR eax, [rbx]', '0f 02 03', { [RBX]: BEHIND - 1 }, BEHIND],
  ['LLDT [rbx]', '0f 00 13', { [RBX]: BEHIND - 1 }, BEHIND],
  ['LTR [rbx]', '0f 00 1b', { [RBX]: BEHIND - 1 }, BEHIND],
  ['SLDT [rbx]', '0f 00 03', { [RBX]: BEHIND - 1 }, BEHIND],
  ['SMSW [rbx]', '0f 01 23', { [RBX]: BEHIND - 1 }, BEHIND],
  ['LMSW [rbx]', '0f 01 33', { [RBX]: BEHIND - 1 }, BEHIND],
];

describe('nothing has changed when the last access faults', () => {
  beforeEach(() => {
    guest.setLong(CR4, guest.long(CR4) | 0x40200n); // OSFXSR, OSXSAVE
    guest.core.xcr0 = 3n;
    guest.core.xmm.fill(0x5a);
    for (const vector of [1, 3, 6, 0x30]) guest.gate(vector, HANDLERS);
    guest.intercept(123, 0);
  });

  it.each(ROWS)('%s', (_name: string, code: string, registers: Registers, cr2: number, words?: Words) => {
    for (const [at, value] of words ?? []) guest.write(at, value);
    const flags = /^(f3 )?6[cdf]/.test(code) ? 0x2n : 0x8d7n;
    expect(bench.execute(bytesOf(code), registers, flags)).toEqual({
      exit: PAGE_FAULT_EXIT,
      address: BigInt(cr2),
      changed: false,
    });
  });

  it.each([
    [
      'an interrupt gate to the stack of RSP0',
      'cd 30',
      DATA + 24,
      BELOW,
      () => guest.gate(0x30, HANDLERS, { dpl: 3 }),
    ],
    ['the same, the first push', 'cd 30', DATA, BELOW, () => guest.gate(0x30, HANDLERS, { dpl: 3 })],
    ['a call gate to the stack of RSP0', 'ff 1c 25 00 80 00 00', DATA + 16, BELOW, callGate],
  ])('%s', (_name, code, rsp0, cr2, prepare) => {
    guest.becomeUser();
    for (const missing of [DATA - 0x1000, BEHIND]) guest.write(0x4000 + (missing / 4096) * 8, 0);
    prepare();
    guest.memory.write(guest.spa(TSS + 4), new Uint8Array(new BigUint64Array([BigInt(rsp0)]).buffer));
    const { exit, address, changed } = bench.execute(bytesOf(code), { [RSP]: 0xd000 });
    expect([exit, address]).toEqual([PAGE_FAULT_EXIT, BigInt(cr2)]);
    // What is below the inner stack's top is nobody's.
    expect([changed && rsp0 === DATA, guest.cpl, guest.long(0x5d8)]).toEqual([false, 3, 0xd000n]);
    expect(guest.read(rsp0)).toBe(0x0123456789abcdefn ^ BigInt(rsp0 - DATA));
    expect(guest.word(0x410) & 0xffff).toBe(0x23);
  });

  /** The far pointer at 0x8000 names the gate at 0x30 of the GDT. */
  function callGate(): void {
    guest.segment(0x60, 0, 0, 0x4f, BigInt(GDT));
    guest.write(
      GDT + 0x30,
      BigInt(HANDLERS & 0xffff) | (8n << 16n) | (0xec00n << 32n) | (BigInt(HANDLERS >> 16) << 48n),
    );
    guest.write(GDT + 0x38, 0);
    guest.write(0x8000, 0x33n << 32n);
  }
});

it.each([
  ['REP INSD', 0x6d, RDI],
  ['REP OUTSD', 0x6f, RSI],
])('%s keeps what it has done', (_name, code, pointer) => {
  guest.intercept(123, 0);
  guest.setLong(RFLAGS, 0x2n);
  guest.core.gpr[RCX] = 4n;
  guest.core.gpr[RDX] = 0x80n;
  guest.core.gpr[pointer] = BigInt(BEHIND - 10);
  expect(guest.runBytes(0xf3, code)).toBe(PAGE_FAULT_EXIT);
  expect(guest.core.gpr[RCX]).toBe(2n);
  expect(guest.core.gpr[pointer]).toBe(BigInt(BEHIND - 2));
  expect(guest.long(RIP)).toBe(BigInt(CODE));
  expect(guest.long(CR2)).toBe(0n);
});
