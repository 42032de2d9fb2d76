/** What the decoder adds of its own around an operation: address, load, load for write, store; and the ends of lines. */
import { STATE } from '../state.ts';
import { i64 } from '../wasm/value.ts';
import type { Group, OperandContext } from './operation.ts';

/** Linear address into TEMP_EA; size 32 cuts it to 32 bits (address-size prefix). */
function computeAddress(c: OperandContext): void {
  const address = c.effectiveAddress();
  c.setState(STATE.TEMP_EA, c.size === 32 ? i64.and(address, 0xffffffff) : address);
}

const INTEGERS = [8, 16, 32, 64] as const;

export const transfer: Group = {
  operations: {
    ea: { sizes: [32, 64], hot: [64], emit: computeAddress },
    /** Memory to operand 0, zero-extended to 64 bits where it is no vector. */
    load: {
      sizes: INTEGERS,
      hot: [32, 64],
      emit: (c) => c.write(0, c.load(c.effectiveAddress(), c.size), 64),
    },
    /** The same, and TEMP_EA is the address, and the store that follows cannot fault. */
    loadForWrite: {
      sizes: INTEGERS,
      forms: ['memory0'],
      emit: (c) => {
        c.setState(STATE.TEMP_EA, c.effectiveAddress());
        c.setState(STATE.TEMP0, c.readUnsigned(0));
      },
    },
    store: {
      sizes: INTEGERS,
      forms: ['memory0'],
      destination: 'write',
      hot: [32, 64],
      emit: (c) => c.write(0, c.read(1)),
    },
    loadVector: {
      sizes: [128],
      forms: ['memory1'],
      destination: 'write',
      hot: [128],
      emit: (c) => c.writeVector(0, c.readVector(1)),
    },
    loadVectorAligned: {
      sizes: [128],
      forms: ['memory1'],
      destination: 'write',
      hot: [128],
      emit: (c) => {
        requireAlignment(c);
        c.writeVector(0, c.readVector(1));
      },
    },
    storeVector: {
      sizes: [128],
      forms: ['memory0'],
      destination: 'write',
      hot: [128],
      emit: (c) => c.writeVector(0, c.readVector(1)),
    },
    storeVectorAligned: {
      sizes: [128],
      forms: ['memory0'],
      destination: 'write',
      hot: [128],
      emit: (c) => {
        requireAlignment(c);
        c.writeVector(0, c.readVector(1));
      },
    },
  },
  instructions: {},
};

const GENERAL_PROTECTION = 13;

/** #GP where the effective address is not a multiple of 16. */
export function requireAlignment(c: OperandContext): void {
  c.code.if(i32Misaligned(c), () => c.raise(GENERAL_PROTECTION, 0));
}

const i32Misaligned = (c: OperandContext) => i64.ne(i64.and(c.effectiveAddress(), 15), 0);
