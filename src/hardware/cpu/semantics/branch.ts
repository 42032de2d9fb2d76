/**
 * Conditional branches (APM volume 3: Jcc, LOOPcc, JrCXZ), and CMP or TEST fused with the Jcc behind it into one operation. The
 * flags are set all the same; the condition is taken from the operands, which is shorter.
 */
import { GPR, STATE } from '../state.ts';
import { type I32, type I64, i32, i64 } from '../wasm/value.ts';
import { arithmetic, setDifferenceFlags, setLogicFlags } from './arithmetic.ts';
import { CONDITIONS, condition, isNegative, signExtend } from './flags.ts';
import type { Group, OperandContext, Operation, Size } from './operation.ts';

const ANY = { sizes: [64], hot: [64] } as const;

function jumpIf(holds: (c: OperandContext) => I32, far: boolean): Operation {
  return {
    ...ANY,
    emit: (c) => c.code.if(holds(c), () => (far ? c.branchOutOfPage() : c.branchInPage())),
  };
}

/** Conditions of a difference that its operands show, by code; the others are rare. */
const DIFFERENCE: readonly [string, (a: I64, b: I64) => I32][] = [
  ['B', i64.ltU],
  ['Ae', i64.geU],
  ['E', i64.eq],
  ['Ne', i64.ne],
  ['Be', i64.leU],
  ['A', i64.gtU],
  ['L', i64.ltS],
  ['Ge', i64.geS],
  ['Le', i64.leS],
  ['G', i64.gtS],
];

const LOGIC: readonly [string, (r: I64) => I32][] = [
  ['E', i64.eqz],
  ['Ne', (r) => i64.ne(r, 0)],
  ['S', isNegative],
  ['Ns', (r) => i64.geS(r, 0)],
  ['Le', (r) => i64.leS(r, 0)],
  ['G', (r) => i64.gtS(r, 0)],
];

/** Conditions on which programs jump after a comparison of bytes. */
const BYTE_DIFFERENCE: ReadonlySet<string> = new Set(['E', 'Ne', 'Be', 'A']);

function compareAndJump(name: string, holds: (a: I64, b: I64) => I32): Operation {
  const sizes: readonly Size[] = BYTE_DIFFERENCE.has(name) ? [8, 32, 64] : [32, 64];
  return {
    sizes,
    hot: sizes,
    destination: 'read',
    forms: ['registers', 'memory0'],
    emit: (c) => {
      const a = c.read(0);
      const b = c.read(1);
      setDifferenceFlags(c, a, b, c.code.let(signExtend(i64.sub(a, b), c.size)));
      c.code.if(holds(a, b), () => c.branchInPage());
    },
  };
}

function testAndJump(holds: (r: I64) => I32): Operation {
  return {
    sizes: [8, 32, 64],
    hot: [8, 32, 64],
    destination: 'read',
    emit: (c) => {
      const r = c.code.let(i64.and(c.read(0), c.read(1)));
      setLogicFlags(c, r);
      c.code.if(holds(r), () => c.branchInPage());
    },
  };
}

/** ADD, SUB, INC or DEC on registers, and a jump by the result: what ends most loops. */
function countAndJump(operation: Operation, equal: boolean): Operation {
  return {
    sizes: [32, 64],
    hot: [32, 64],
    emit: (c) => {
      operation.emit(c);
      const zero = i64.eqz(c.readUnsigned(0));
      c.code.if(equal ? zero : i32.eqz(zero), () => c.branchInPage());
    },
  };
}

const COUNTING = ['add', 'sub', 'inc', 'dec'] as const;

/** LOOP: rCX counts down without touching flags; the size is that of the address. One out of its page is rare, and cold. */
function loop(holds: (c: OperandContext) => I32, far: boolean): Operation {
  return {
    sizes: [32, 64],
    hot: far ? [] : [32, 64],
    emit: (c) => {
      const count = c.code.let(i64.sub(c.readRegisterUnsigned(GPR.RCX), 1));
      const left = i64.ne(c.size === 32 ? i64.and(count, 0xffffffff) : count, 0);
      const taken = c.code.let(i32.and(left, holds(c)));
      if (far) c.code.if(taken, () => c.checkTarget(c.targetOutOfPage()));
      c.writeRegister(GPR.RCX, count);
      c.code.if(taken, () => (far ? c.branchOutOfPage() : c.branchInPage()));
    },
  };
}

function jumpIfCounterZero(far: boolean): Operation {
  return {
    sizes: [32, 64],
    hot: [32, 64],
    emit: (c) =>
      c.code.if(i64.eqz(c.readRegisterUnsigned(GPR.RCX)), () =>
        far ? c.branchOutOfPage() : c.branchInPage(),
      ),
  };
}

const zeroFlag = (c: OperandContext): I32 => i64.eqz(c.state(STATE.FLAG_ZR));

/** Operations of each branch in two variants: inside the page, and out of it (name + 'OutOfPage'). */
function both(name: string, make: (far: boolean) => Operation): Record<string, Operation> {
  return { [name]: make(false), [`${name}OutOfPage`]: make(true) };
}

export const branch: Group = {
  operations: {
    ...Object.assign(
      {},
      ...CONDITIONS.map(([name, code]) => both(`j${name}`, (far) => jumpIf((c) => condition(c, code), far))),
    ),
    ...Object.fromEntries(DIFFERENCE.map(([name, holds]) => [`cmp+j${name}`, compareAndJump(name, holds)])),
    ...Object.fromEntries(LOGIC.map(([name, holds]) => [`test+j${name}`, testAndJump(holds)])),
    ...Object.fromEntries(
      COUNTING.flatMap((name) => [
        [`${name}+jE`, countAndJump(arithmetic.operations[name]!, true)],
        [`${name}+jNe`, countAndJump(arithmetic.operations[name]!, false)],
      ]),
    ),
    ...both('loop', (far) => loop(() => i32.const(1), far)),
    ...both('loope', (far) => loop(zeroFlag, far)),
    ...both('loopne', (far) => loop((c) => i32.eqz(zeroFlag(c)), far)),
    ...both('jrcxz', (far) => jumpIfCounterZero(far)),
  },
  instructions: {},
};

/** Mnemonic to the operation of a direct branch, without its `OutOfPage` variant. */
export const DIRECT_BRANCHES: Readonly<Record<string, string>> = {
  ...Object.fromEntries(CONDITIONS.map(([name]) => [`J${name.toLowerCase()}`, `j${name}`])),
  Jmp: 'jmp',
  Call: 'call',
  Loop: 'loop',
  Loope: 'loope',
  Loopne: 'loopne',
  Jcxz: 'jrcxz',
  Jecxz: 'jrcxz',
  Jrcxz: 'jrcxz',
};
