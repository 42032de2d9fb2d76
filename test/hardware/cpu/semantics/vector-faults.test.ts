/**
 * Every instruction on vectors with a memory operand: where it must be aligned, where it faults, and that a fault leaves registers, flags and
 * memory as they were.
 */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FlatMachine } from '../../../oracle/flat-machine.ts';
import { type Form, formsOf } from '../../../oracle/forms.ts';
import { GROUPS } from '../../../oracle/groups.ts';

const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;
const { Encoder, Instruction, OpKind, Register, MemorySizeExt } = iced;

const CODE = 0x10000n;
const PAGE = 0x20000n;
const [RBX, RDI, RSP] = [3, 7, 4];
const EXCEPTION = 2;
const [GP, PF] = [13, 14];
const XMM = 0x100;
const VECTOR_WORD = 0x230;

/** 16 bytes that may lie anywhere. */
const UNALIGNED = /^(Movdqu|Movups|Movupd|Lddqu|Pcmp[ei]str[im]|Maskmovdqu)/;

const forms = ['sse2', 'ssse3', 'sse41', 'stringCompare', 'cryptography']
  .flatMap((group) => formsOf(GROUPS[group]!))
  .filter(({ operands }) => operands.some((kind) => /mem$|^seg_rDI$/.test(kind)))
  .filter(({ operands }) => operands.some((kind) => kind.startsWith('xmm')));

/** The form with its memory operand at [rbx] (or [rdi], where it is implied), and its size in bytes. */
function encode({ code, operands }: Form): { bytes: Uint8Array; size: number } {
  const instruction = new Instruction();
  instruction.code = code;
  operands.forEach((kind, k) => {
    if (kind === 'seg_rDI') instruction.setOpKind(k, OpKind.MemorySegRDI);
    else if (/mem$/.test(kind)) {
      instruction.setOpKind(k, OpKind.Memory);
      instruction.memoryBase = Register.RBX;
    } else if (kind.startsWith('imm')) {
      instruction.setOpKind(k, OpKind.Immediate8);
      instruction.setImmediateU64(k, 9n);
    } else {
      instruction.setOpKind(k, OpKind.Register);
      const register = kind.startsWith('xmm')
        ? Register.XMM3
        : kind.startsWith('r64')
          ? Register.RSI
          : Register.ESI;
      instruction.setOpRegister(k, register);
    }
  });
  const encoder = new Encoder(64);
  encoder.encode(instruction, CODE);
  return { bytes: encoder.takeBuffer(), size: MemorySizeExt.size(instruction.memorySize) };
}

let machine: FlatMachine;
beforeAll(() => {
  machine = new FlatMachine();
  machine.addPage(CODE);
  machine.addPage(PAGE);
});
afterAll(() => machine.close());

const state = () => ({
  registers: Array.from({ length: 16 }, (_, n) => machine.register(n)),
  vectors: Array.from({ length: 32 }, (_, n) => machine.get(XMM + 8 * n)),
  flags: machine.flags,
  page: Buffer.from(
    machine.memory.bytes.subarray(machine.physical(PAGE), machine.physical(PAGE) + 4096),
  ).toString('hex'),
});

/** Runs the one instruction with its operand at `address`; the vector that it raises, or undefined. */
function execute(bytes: Uint8Array, address: bigint): { vector: number | undefined; changed: boolean } {
  machine.put(CODE, [...bytes]);
  machine.interpreter.invalidateFrame(machine.physical(CODE) >>> 12);
  for (let n = 0; n < 16; n++) machine.setRegister(n, 0x0123456789abcdefn * BigInt(n + 1));
  machine.setRegister(RSP, PAGE + 0x800n);
  machine.setRegister(RBX, address);
  machine.setRegister(RDI, address);
  for (let n = 0; n < 32; n++) machine.set(XMM + 8 * n, 0xf1e2d3c4b5a69788n * BigInt(2 * n + 1));
  machine.put(
    PAGE,
    Array.from({ length: 4096 }, (_, at) => (at * 7) & 0xff),
  );
  machine.flags = 0x8d5n;
  machine.rip = CODE;
  machine.emptyTlb(0x1000);
  machine.emptyTlb(0x3000);
  const before = state();
  const reason = machine.step();
  const vector = reason === EXCEPTION ? machine.word(VECTOR_WORD) : undefined;
  const changed = JSON.stringify(before, asText) !== JSON.stringify(state(), asText);
  return { vector, changed };
}
const asText = (_: string, value: unknown) => (typeof value === 'bigint' ? value.toString(16) : value);

describe('instructions on vectors and memory', () => {
  it('are many', () => {
    expect(forms.length).toBeGreaterThan(150);
  });
  for (const form of forms) {
    const { bytes, size } = encode(form);
    const aligned = size === 16 && !UNALIGNED.test(form.name);
    it(`${form.name}, ${size} bytes${aligned ? ', aligned' : ''}`, () => {
      // Where it is right, it runs; the page before and the one behind are missing.
      expect(execute(bytes, PAGE).vector).toBe(undefined);
      expect(execute(bytes, PAGE + 4096n - BigInt(size)).vector).toBe(undefined);
      const odd = execute(bytes, PAGE + 0x201n);
      if (aligned) expect(odd).toEqual({ vector: GP, changed: false });
      else expect(odd.vector).toBe(undefined);
      // Into the missing page, wholly and by a byte; alignment comes first.
      expect(execute(bytes, PAGE + 4096n)).toEqual({ vector: PF, changed: false });
      const across = execute(bytes, PAGE + 4096n - BigInt(size) + 1n);
      if (size > 1 && aligned) expect(across).toEqual({ vector: GP, changed: false });
      else expect(across).toEqual({ vector: PF, changed: false });
      expect(execute(bytes, PAGE - 1n).vector).toBe(aligned ? GP : PF);
    });
  }
});
