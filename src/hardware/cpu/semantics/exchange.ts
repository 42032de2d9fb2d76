/**
 * Read-modify-write instructions of synchronisation (APM volume 3: XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B). All cores of a host run in
 * one thread, so an instruction is atomic as it is, and a LOCK prefix changes nothing.
 */
import { GPR, STATE } from '../state.ts';
import { type I64, i32, i64, select } from '../wasm/value.ts';
import { setDifferenceFlags, setSumFlags } from './arithmetic.ts';
import { signExtend } from './flags.ts';
import { type Group, INTEGER_SIZES, type OperandContext, READ, UPDATE } from './operation.ts';

const GENERAL_PROTECTION = 13;

function exchangeAndAdd(c: OperandContext): void {
  const a = c.read(0);
  const b = c.read(1);
  const r = c.code.let(signExtend(i64.add(a, b), c.size));
  c.write(1, a);
  c.write(0, r);
  setSumFlags(c, a, b, r);
}

/** Where the comparison fails, memory is written with its old value, and a register stays, all 64 bits of it (AMD). */
function compareAndExchange(c: OperandContext): void {
  const { code } = c;
  const old = c.read(0);
  const fresh = c.read(1);
  const expected = code.let(c.readRegister(GPR.RAX));
  const equal = code.let(i64.eq(expected, old));
  if (c.inMemory(0)) {
    c.write(0, select(equal, fresh, old));
    code.if(i32.eqz(equal), () => c.writeRegister(GPR.RAX, old));
  } else {
    code.if(
      equal,
      () => c.write(0, fresh),
      () => c.writeRegister(GPR.RAX, old),
    );
  }
  setDifferenceFlags(c, expected, old, code.let(signExtend(i64.sub(expected, old), c.size)));
}

/** ZF alone changes. */
function setEqual(c: OperandContext, equal: I64): void {
  c.setState(STATE.FLAG_ZR, i64.xor(equal, 1));
}

/** EDX:EAX against 64 bits of memory. */
function compareAndExchangePair(c: OperandContext): void {
  const { code } = c;
  const old = c.read(0);
  const pair = (high: number, low: number): I64 =>
    i64.or(i64.shl(c.readRegisterUnsigned(high, 32), 32), c.readRegisterUnsigned(low, 32));
  const equal = code.let(i64.eq(pair(GPR.RDX, GPR.RAX), old));
  c.write(0, select(equal, pair(GPR.RCX, GPR.RBX), old));
  code.if(i32.eqz(equal), () => {
    c.writeRegister(GPR.RAX, old, 32);
    c.writeRegister(GPR.RDX, i64.shrU(old, 32), 32);
  });
  setEqual(c, i64.fromI32U(equal));
}

/** RDX:RAX against 16 bytes of memory, which `probeVector` found writable and which lie in XTEMP0; STATE.XTEMP1 goes back. */
function compareAndExchangeWide(c: OperandContext): void {
  const { code } = c;
  const low = code.let(c.state(STATE.XTEMP0));
  const high = code.let(c.state(STATE.XTEMP0 + 8));
  const same = (register: number, old: I64) => i64.eq(c.readRegister(register, 64), old);
  const equal = code.let(i32.and(same(GPR.RAX, low), same(GPR.RDX, high)));
  c.setState(STATE.XTEMP1, select(equal, c.readRegister(GPR.RBX, 64), low));
  c.setState(STATE.XTEMP1 + 8, select(equal, c.readRegister(GPR.RCX, 64), high));
  code.if(i32.eqz(equal), () => {
    c.writeRegister(GPR.RAX, low, 64);
    c.writeRegister(GPR.RDX, high, 64);
  });
  setEqual(c, i64.fromI32U(equal));
}

/** 16 bytes at an aligned address into XTEMP0, to be written later without a fault. */
function loadVectorForWrite(c: OperandContext): void {
  const address = c.effectiveAddress();
  c.code.if(i64.ne(i64.and(address, 15), 0), () => c.raise(GENERAL_PROTECTION, 0));
  c.setState(STATE.TEMP_EA, address);
  const old = c.readVector(0);
  c.setStateVector(STATE.XTEMP0, old);
}

export const exchange: Group = {
  operations: {
    xadd: { sizes: INTEGER_SIZES, forms: ['registers', 'memory0'], emit: exchangeAndAdd },
    cmpxchg: { sizes: INTEGER_SIZES, forms: ['registers', 'memory0'], emit: compareAndExchange },
    cmpxchg8b: { sizes: [64], forms: ['memory0'], emit: compareAndExchangePair },
    cmpxchg16b: { sizes: [64], emit: compareAndExchangeWide },
    loadVectorForWrite: { sizes: [128], forms: ['memory0'], emit: loadVectorForWrite },
  },
  instructions: {
    Xadd: { operation: 'xadd', roles: [UPDATE, READ] },
    Cmpxchg: { operation: 'cmpxchg', roles: [UPDATE, READ] },
    Cmpxchg8b: { operation: 'cmpxchg8b', roles: [UPDATE], size: 64 },
    Cmpxchg16b: { operation: 'cmpxchg16b', roles: [UPDATE], size: 64 },
  },
};
