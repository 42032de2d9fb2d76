/** iced's registers as places in the state block. */
import { SAVE } from '../../../abi/vmcb.ts';
import { STATE } from '../state.ts';
import { iced } from './iced.ts';

const LEGACY = ['AX', 'CX', 'DX', 'BX', 'SP', 'BP', 'SI', 'DI'];
const LOW_BYTES = ['AL', 'CL', 'DL', 'BL', 'SPL', 'BPL', 'SIL', 'DIL'];
const HIGH_BYTES = ['AH', 'CH', 'DH', 'BH'];
const SEGMENTS = ['ES', 'CS', 'SS', 'DS', 'FS', 'GS'];

/** A register that no instruction here has, as a name for the linear address of an operand outside 64-bit mode. */
const LINEAR_BASE = 'BND0';

export interface RegisterPlace {
  /** Offset in the state block. */
  readonly offset: number;
  /** Bits. */
  readonly size: number;
}

export interface Registers {
  /** General and XMM registers; RIP is the page's base. */
  readonly places: ReadonlyMap<number, RegisterPlace>;
  /** Numbers of segment, control and debug registers. */
  readonly numbers: ReadonlyMap<number, number>;
  /** The base register of an operand whose linear address is in STATE.LINEAR. */
  readonly linear: number;
}

/** Offset in the state block of a segment's base: the save area's record is selector, attributes, limit, base. */
export const SEGMENT_BASE = { FS: STATE.SAVE + SAVE.FS + 8, GS: STATE.SAVE + SAVE.GS + 8 } as const;

let known: Registers | undefined;

export function registers(): Registers {
  known ??= enumerate();
  return known;
}

function enumerate(): Registers {
  const { Register } = iced();
  const byName = Register as unknown as Record<string, number>;
  const places = new Map<number, RegisterPlace>();
  const add = (name: string, offset: number, size: number) => places.set(byName[name]!, { offset, size });
  for (let n = 0; n < 16; n++) {
    const offset = STATE.GPR + 8 * n;
    const legacy = LEGACY[n];
    add(LOW_BYTES[n] ?? `R${n}L`, offset, 8);
    add(legacy ?? `R${n}W`, offset, 16);
    add(legacy ? `E${legacy}` : `R${n}D`, offset, 32);
    add(legacy ? `R${legacy}` : `R${n}`, offset, 64);
    add(`XMM${n}`, STATE.XMM + 16 * n, 128);
  }
  HIGH_BYTES.forEach((name, n) => {
    add(name, STATE.GPR + 8 * n + 1, 8);
  });
  add('RIP', STATE.PAGE_BASE, 64);
  add('EIP', STATE.PAGE_BASE, 32);
  add(LINEAR_BASE, STATE.LINEAR, 64);
  const numbers = new Map<number, number>();
  SEGMENTS.forEach((name, n) => {
    numbers.set(byName[name]!, n);
  });
  for (let n = 0; n < 16; n++) {
    numbers.set(byName[`CR${n}`]!, n);
    numbers.set(byName[`DR${n}`]!, n);
  }
  return { places, numbers, linear: byName[LINEAR_BASE]! };
}
