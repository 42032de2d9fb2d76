/**
 * Every instruction on vectors with a memory operand: where it must be aligned, where it faults, and that a fault leaves registers, flags and
 * memory as they were.
 */
import { createRequire } from 'node:module';
import type * as Iced from 'iced-x86';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Form, formsOf } from '../../../oracle/forms.ts';
import { FLOAT_GROUPS, GROUPS } from '../../../oracle/groups.ts';
import { CODE, OnePageMachine, PAGE } from './one-page-machine.ts';

const iced = createRequire(import.meta.url)('iced-x86') as typeof Iced;
const { Encoder, Instruction, OpKind, Register, MemorySizeExt } = iced;

const [RBX, RDI] = [3, 7] as const;
const [GP, PF] = [13, 14];

/** 16 bytes that may lie anywhere. */
const UNALIGNED = /^(Movdqu|Movups|Movupd|Lddqu|Pcmp[ei]str[im]|Maskmovdqu)/;

const forms = ['sse2', 'ssse3', 'sse41', 'stringCompare', 'cryptography', ...FLOAT_GROUPS]
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

let machine: OnePageMachine;
beforeAll(() => {
  machine = new OnePageMachine();
});
afterAll(() => machine.close());

const execute = (bytes: Uint8Array, address: bigint) =>
  machine.execute(bytes, { [RBX]: address, [RDI]: address });

describe('instructions on vectors and memory', () => {
  it('are many', () => {
    expect(forms.length).toBeGreaterThan(250);
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
      expect(execute(bytes, PAGE - 1n)).toEqual({ vector: aligned ? GP : PF, changed: false });
    });
  }
});
