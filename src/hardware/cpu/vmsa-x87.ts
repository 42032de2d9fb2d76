/**
 * The x87 state in a VMSA (APM volume 2, table B-4; reference svm.md 1.7): control words and pointers, eight significands, then eight words of sign and exponent, registers from the
 * top of the stack on. The tag word is the full one, two bits a register. That layout of registers is KVM's; the form of the tag word is read off from the reset value, 0x5555, that
 * Linux gives to APs: no document says so.
 */
import { VMSA } from '../../abi/vmsa.ts';
import type { HostMemory } from '../memory/host-memory.ts';
import { FX, X87State } from './fx-image.ts';
import type { Registers } from './registers.ts';
import { STATE } from './state.ts';

const EMPTY = 3;
const ZERO = 1;
const SPECIAL = 2;
const EXPONENT = 0x7fff;
const EXPONENTS = VMSA.X87_REGISTERS + 64;

export function loadX87({ words }: HostMemory, registers: Registers, vmsa: number): void {
  const x87 = new X87State(registers);
  const half = (field: number): number => (words[(vmsa + field) >>> 2]! >>> ((field & 2) * 8)) & 0xffff;
  x87.setControl(half(VMSA.X87_FCW));
  x87.setStatus(half(VMSA.X87_FSW));
  const full = half(VMSA.X87_FTW);
  let tags = 0;
  for (let number = 0; number < 8; number++) if (((full >>> (2 * number)) & 3) !== EMPTY) tags |= 1 << number;
  x87.tags = tags;
  x87.setPointers(half(VMSA.X87_FOP), 0n, 0n);
  for (let word = 0; word < 8; word += 4) {
    const kept = word === 4 ? 0xffff : -1;
    registers.setWord(STATE.X87 + FX.FIP + word, words[(vmsa + VMSA.X87_RIP + word) >>> 2]! & kept);
    registers.setWord(STATE.X87 + FX.FDP + word, words[(vmsa + VMSA.X87_DP + word) >>> 2]! & kept);
  }
  x87.setSelectors(half(VMSA.X87_CS), half(VMSA.X87_DS));
  const top = (x87.fsw >> 11) & 7;
  for (let k = 0; k < 8; k++) {
    const to = STATE.X87 + FX.ST + 16 * ((top + k) & 7);
    const from = (vmsa + VMSA.X87_REGISTERS + 8 * k) >>> 2;
    registers.setWord(to, words[from]!);
    registers.setWord(to + 4, words[from + 1]!);
    registers.setWord(to + 8, half(EXPONENTS + 2 * k));
    registers.setWord(to + 12, 0);
  }
}

/** And makes the core's initial. */
export function storeX87({ words }: HostMemory, registers: Registers, vmsa: number): void {
  const x87 = new X87State(registers);
  const { fsw, tags } = x87;
  const put = (field: number, low: number, high: number): void => {
    words[(vmsa + field) >>> 2] = low | (high << 16);
  };
  let full = 0;
  for (let number = 0; number < 8; number++) full |= tagOf(registers, tags, number) << (2 * number);
  put(VMSA.X87_FTW, full, fsw);
  put(VMSA.X87_FCW, x87.fcw, x87.opcode);
  put(VMSA.X87_DS, x87.dataSelector, x87.codeSelector);
  for (let word = 0; word < 8; word += 4) {
    words[(vmsa + VMSA.X87_RIP + word) >>> 2] = registers.word(STATE.X87 + FX.FIP + word);
    words[(vmsa + VMSA.X87_DP + word) >>> 2] = registers.word(STATE.X87 + FX.FDP + word);
  }
  const top = (fsw >> 11) & 7;
  for (let k = 0; k < 8; k++) {
    const from = STATE.X87 + FX.ST + 16 * ((top + k) & 7);
    const to = (vmsa + VMSA.X87_REGISTERS + 8 * k) >>> 2;
    words[to] = registers.word(from);
    words[to + 1] = registers.word(from + 4);
    const at = (vmsa + EXPONENTS + 2 * k) >>> 2;
    const exponent = registers.word(from + 8) & 0xffff;
    words[at] = (k & 1) === 0 ? exponent : words[at]! | (exponent << 16);
  }
  x87.clear();
}

/** The register's two bits of the full tag word. */
function tagOf(registers: Registers, tags: number, number: number): number {
  if (((tags >>> number) & 1) === 0) return EMPTY;
  const at = STATE.X87 + FX.ST + 16 * number;
  const low = registers.word(at);
  const high = registers.word(at + 4);
  const exponent = registers.word(at + 8) & EXPONENT;
  if (exponent === 0 && low === 0 && high === 0) return ZERO;
  return exponent === 0 || exponent === EXPONENT || high >= 0 ? SPECIAL : 0;
}
