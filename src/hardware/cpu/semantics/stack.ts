/** The stack (APM volume 3: PUSH, POP, PUSHF, ENTER, LEAVE, CALL, RET). POPF is the slow path's: what it may change depends on privilege. */
import { GPR, STATE } from '../state.ts';
import { type I64, i32, i64 } from '../wasm/value.ts';
import { composeFlags } from './flag-register.ts';
import { type Group, type OperandContext, READ, type Role, type Size, WRITE } from './operation.ts';

const IMMEDIATE_16: Role = { access: 'read', size: 16 };
const IMMEDIATE_8: Role = { access: 'read', size: 8 };
const TARGET: Role = { access: 'read', size: 64 };

/** Stores below RSP, then moves RSP. */
export function push(c: OperandContext, what: I64, size: Size): void {
  const top = c.code.let(i64.sub(c.state(RSP), size / 8));
  c.store(top, what, size);
  c.setState(RSP, top);
}

const RSP = STATE.GPR + 8 * GPR.RSP;
const RBP = STATE.GPR + 8 * GPR.RBP;

function pop(c: OperandContext): void {
  const what = c.load(c.state(RSP), c.size);
  c.setState(RSP, i64.add(c.state(RSP), c.size / 8));
  c.write(0, what);
}

/** The decoder has made the address as if RSP had moved already; it moves when the store is done. */
function popToMemory(c: OperandContext): void {
  const what = c.load(c.state(RSP), c.size);
  c.store(c.effectiveAddress(), what, c.size);
  c.setState(RSP, i64.add(c.state(RSP), c.size / 8));
}

function leave(c: OperandContext): void {
  const frame = c.code.let(c.state(RBP));
  const saved = c.load(frame, c.size);
  c.setState(RSP, i64.add(frame, c.size / 8));
  c.writeRegister(GPR.RBP, saved);
}

/**
 * ENTER with nesting level `operand 1 & 31`: copies level − 1 frame pointers from the old frame, and ends with the check of a store at the new
 * top of the stack.
 */
function enter(c: OperandContext): void {
  const { code } = c;
  const bytes = c.size / 8;
  const level = code.let(i32.wrap(i64.and(c.readUnsigned(1, 8), 31)));
  const top = code.let(i64.sub(c.state(RSP), bytes));
  c.store(top, c.state(RBP), c.size);
  const frame = code.let(top);
  const from = code.let(c.state(RBP));
  code.if(level, () => {
    const left = code.let(level);
    code.block((done) =>
      code.loop((again) => {
        code.set(left, i32.sub(left, 1));
        code.brIf(done, i32.eqz(left));
        code.set(from, i64.sub(from, bytes));
        code.set(top, i64.sub(top, bytes));
        c.store(top, c.load(from, c.size), c.size);
        code.br(again);
      }),
    );
    code.set(top, i64.sub(top, bytes));
    c.store(top, frame, c.size);
  });
  code.set(top, i64.sub(top, c.readUnsigned(0, 16)));
  c.checkStore(top, c.size);
  c.setState(RSP, top);
  c.writeRegister(GPR.RBP, frame);
}

function call(c: OperandContext): void {
  push(c, c.nextAddress(), 64);
  c.branchInPage();
}

/** A push that faults comes before a target that is not canonical, as on AMD's cores. */
function callTo(c: OperandContext, target: I64): void {
  c.checkTarget(target, () => c.checkStore(i64.sub(c.state(RSP), 8), 64));
  push(c, c.nextAddress(), 64);
  c.jump(target);
}

function returnNear(c: OperandContext, released: I64): void {
  const target = c.load(c.state(RSP), 64);
  c.checkTarget(target);
  c.setState(RSP, i64.add(i64.add(c.state(RSP), 8), released));
  c.jump(target);
}

const PUSH_SIZES = [16, 64] as const;
const JUMP = { sizes: [64], forms: ['registers', 'memory0'], destination: 'read', hot: [64] } as const;
const IN_LINE = { sizes: [64], hot: [64] } as const;

export const stack: Group = {
  operations: {
    push: {
      sizes: PUSH_SIZES,
      forms: ['registers', 'memory0'],
      destination: 'read',
      hot: [64],
      emit: (c) => push(c, c.read(0), c.size),
    },
    pop: { sizes: PUSH_SIZES, hot: [64], emit: pop },
    popToMemory: { sizes: PUSH_SIZES, emit: popToMemory },
    // RF and VM are pushed as 0.
    pushFlags: { sizes: PUSH_SIZES, emit: (c) => push(c, i64.and(composeFlags(c), ~0x30000), c.size) },
    leave: { sizes: PUSH_SIZES, hot: [64], emit: leave },
    enter: { sizes: PUSH_SIZES, emit: enter },
    call: { ...IN_LINE, emit: call },
    callOutOfPage: { ...IN_LINE, emit: (c) => callTo(c, c.targetOutOfPage()) },
    callIndirect: { ...JUMP, emit: (c) => callTo(c, c.read(0, 64)) },
    ret: { ...IN_LINE, emit: (c) => returnNear(c, i64.const(0)) },
    retReleasing: { ...IN_LINE, emit: (c) => returnNear(c, c.readUnsigned(0, 16)) },
    jmp: { ...IN_LINE, emit: (c) => c.branchInPage() },
    jmpOutOfPage: { ...IN_LINE, emit: (c) => c.branchOutOfPage() },
    nextPage: { ...IN_LINE, emit: (c) => c.goOnInNextPage() },
    jmpIndirect: { ...JUMP, emit: (c) => c.jump(c.read(0, 64)) },
  },
  instructions: {
    Push: { operation: 'push', roles: [READ] },
    Pop: { operation: 'pop', roles: [WRITE] },
    Pushfq: { operation: 'pushFlags', roles: [], size: 64 },
    Pushf: { operation: 'pushFlags', roles: [], size: 16 },
    Leave: { operation: 'leave', roles: [] },
    Enter: { operation: 'enter', roles: [IMMEDIATE_16, IMMEDIATE_8] },
    Ret: {
      operation: (sizes) => (sizes.length === 0 ? 'ret' : 'retReleasing'),
      roles: [IMMEDIATE_16],
      size: 64,
    },
    Call: { operation: 'callIndirect', roles: [TARGET], size: 64 },
    Jmp: { operation: 'jmpIndirect', roles: [TARGET], size: 64 },
  },
};
