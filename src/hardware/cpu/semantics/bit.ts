/** Single bits and counts of them (APM volume 3: BT, BTS, BTR, BTC, BSF, BSR, TZCNT, LZCNT, POPCNT). */
import { STATE } from '../state.ts';
import { type I64, i32, i64, select } from '../wasm/value.ts';
import * as flags from './flags.ts';
import {
  type Group,
  type Instruction,
  type OperandContext,
  type Operation,
  READ,
  UPDATE,
  WRITE,
} from './operation.ts';

const WIDE = [16, 32, 64] as const;

type Change = (a: I64, mask: I64) => I64;

const CHANGES: Readonly<Record<string, Change | undefined>> = {
  bt: undefined,
  bts: (a, mask) => i64.or(a, mask),
  btr: (a, mask) => i64.and(a, i64.not(mask)),
  btc: (a, mask) => i64.xor(a, mask),
};

/** CF alone is defined; the other flags keep their values, as AMD's cores do. */
function setCarry(c: OperandContext, bit: I64): void {
  const rest = i64.and(c.state(STATE.FLAG_CV), (1n << 63n) - 1n);
  flags.setCarries(c, i64.or(rest, flags.carryVector(bit)));
}

/** A bit index beyond the operand wraps around. */
function testBit(change: Change | undefined): Operation['emit'] {
  return (c) => {
    const index = c.code.let(i64.and(c.readUnsigned(1), c.size - 1));
    const a = c.readUnsigned(0);
    if (change) c.write(0, change(a, i64.shl(1, index)));
    setCarry(c, i64.and(i64.shrU(a, index), 1));
  };
}

/** Memory and an index register: the index is signed and counts from the address on. TEMP_EA is where the bit lies. */
function locateBit(c: OperandContext): void {
  const shift = c.size === 16 ? 4 : c.size === 32 ? 5 : 6;
  const units = i64.shrS(c.read(1), shift);
  c.setState(STATE.TEMP_EA, i64.add(c.effectiveAddress(), i64.mul(units, c.size / 8)));
}

/** With a zero source the destination stays, all 64 bits of it (AMD), and of the flags ZF alone is defined. */
function scan(index: (a: I64, size: number) => I64): Operation['emit'] {
  return (c) => {
    const a = c.readUnsigned(1);
    c.code.if(i32.eqz(i64.eqz(a)), () => c.write(0, index(a, c.size)));
    c.setState(STATE.FLAG_ZR, a);
  };
}

const lowest = (a: I64): I64 => i64.ctz(a);
const highest = (a: I64): I64 => i64.sub(63, i64.clz(a));

/** TZCNT and LZCNT: CF if the source is zero, ZF if the result is. */
function count(of: (a: I64, size: number) => I64): Operation['emit'] {
  return (c) => {
    const a = c.readUnsigned(1);
    const r = c.code.let(of(a, c.size));
    c.write(0, r);
    setCarry(c, i64.fromI32U(i64.eqz(a)));
    c.setState(STATE.FLAG_ZR, r);
  };
}

const trailing = (a: I64, size: number): I64 => select(i64.eqz(a), i64.const(size), i64.ctz(a));
const leading = (a: I64, size: number): I64 => i64.sub(i64.clz(a), 64 - size);

function population(c: OperandContext): void {
  const a = c.readUnsigned(1);
  c.write(0, i64.popcnt(a));
  c.setState(STATE.FLAG_ZR, a);
  c.setState(STATE.FLAG_SR, i64.const(1));
  flags.setCarries(c, 0);
  flags.setOverflow(c, 0);
}

const wide = (emit: Operation['emit']): Operation => ({ sizes: WIDE, emit });
const pair = (operation: string): Instruction => ({ operation, roles: [WRITE, READ] });

export const bits: Group = {
  operations: {
    ...Object.fromEntries(Object.entries(CHANGES).map(([name, change]) => [name, wide(testBit(change))])),
    locateBit: { sizes: WIDE, emit: locateBit },
    bsf: wide(scan(lowest)),
    bsr: wide(scan(highest)),
    tzcnt: wide(count(trailing)),
    lzcnt: wide(count(leading)),
    popcnt: wide(population),
  },
  instructions: {
    Bt: { operation: 'bt', roles: [READ, READ] },
    Bts: { operation: 'bts', roles: [UPDATE, READ] },
    Btr: { operation: 'btr', roles: [UPDATE, READ] },
    Btc: { operation: 'btc', roles: [UPDATE, READ] },
    Bsf: pair('bsf'),
    Bsr: pair('bsr'),
    Tzcnt: pair('tzcnt'),
    Lzcnt: pair('lzcnt'),
    Popcnt: pair('popcnt'),
  },
};
