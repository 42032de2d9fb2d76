/**
 * Segment descriptors (APM volume 2, 4.7 and 4.8): reading them from GDT and LDT, the checks for code, stack and data segments in each
 * mode, and the hidden part that a load brings into the save area.
 */
import { SAVE } from '../../abi/vmcb.ts';
import { VECTOR } from '../../abi/x86.ts';
import { PRIVILEGE } from './access.ts';
import { isCanonicalAddress } from './memory-access.ts';
import { hasRealSegments, in64BitMode, inLongMode } from './mode.ts';
import type { CoreParts } from './parts.ts';

/** Bits of a segment's attributes (save area): descriptor bits 47:40 and 55:52. */
export const ATTRIBUTE = {
  ACCESSED: 1,
  WRITABLE: 2,
  CONFORMING: 4,
  CODE: 8,
  S: 0x10,
  DPL: 0x60,
  P: 0x80,
  L: 0x200,
  D: 0x400,
  G: 0x800,
} as const;

/** What long mode's fixed segments look like (SYSCALL, SYSRET). */
export const FLAT_LIMIT = 0xffffffff | 0;
export const FLAT_CODE_64 = 0xa9b;
export const FLAT_CODE_32 = 0xc9b;
export const FLAT_DATA = 0xc93;

const ACCESSED_BYTE = 5;

export const dpl = (attributes: number): number => (attributes >>> 5) & 3;

/** A descriptor as it lies in its table, 8 bytes. */
export class Descriptor {
  attributes = 0;
  /** Bytes less one, unsigned. */
  limit = 0;
  base = 0n;
  /** Linear address of its first byte. */
  address = 0n;

  decode(raw: bigint, address: bigint): void {
    this.address = address;
    this.attributes = Number((raw >> 40n) & 0xffn) | (Number((raw >> 52n) & 0xfn) << 8);
    const limit = Number((raw & 0xffffn) | ((raw >> 32n) & 0xf0000n));
    this.limit = (this.attributes & ATTRIBUTE.G) !== 0 ? ((limit << 12) | 0xfff) >>> 0 : limit;
    this.base = ((raw >> 16n) & 0xffffffn) | ((raw >> 32n) & 0xff000000n);
  }
}

/** SAVE offsets of the segment registers by number: ES CS SS DS FS GS. */
export const SEGMENTS = [SAVE.ES, SAVE.CS, SAVE.SS, SAVE.DS, SAVE.FS, SAVE.GS] as const;

export class Segmentation {
  readonly descriptor = new Descriptor();
  readonly #parts: CoreParts;

  constructor(parts: CoreParts) {
    this.#parts = parts;
  }

  /** Reads the descriptor of a selector that is not null into `descriptor`. `external`: 1 while an external event is delivered. */
  read(selector: number, external: number, vector: number = VECTOR.GP): number {
    const { registers, events, access } = this.#parts;
    const table = (selector & 4) !== 0 ? SAVE.LDTR : SAVE.GDTR;
    const offset = selector & 0xfff8;
    const missing = (selector & 4) !== 0 && (registers.attributes(SAVE.LDTR) & ATTRIBUTE.P) === 0;
    if (missing || offset + 7 > registers.limit(table)) {
      return events.raiseWith(vector, (selector & 0xfffc) | external);
    }
    const address = BigInt.asUintN(64, registers.base(table) + BigInt(offset));
    const reason = access.loadLong(address, PRIVILEGE.IMPLICIT);
    if (reason !== 0) return reason;
    this.descriptor.decode(access.value, address);
    return 0;
  }

  /** Sets the accessed bit of `descriptor` in memory, if it is clear. */
  markAccessed(): number {
    const { descriptor } = this;
    if ((descriptor.attributes & ATTRIBUTE.ACCESSED) !== 0) return 0;
    descriptor.attributes |= ATTRIBUTE.ACCESSED;
    const byte = BigInt(descriptor.attributes & 0xff);
    return this.#parts.access.storeSized(
      descriptor.address + BigInt(ACCESSED_BYTE),
      byte,
      1,
      PRIVILEGE.IMPLICIT,
    );
  }

  /**
   * Checks a selector for CS. `kind`: `gate` enters by an interrupt or call gate (DPL ≤ CPL; in long mode 64-bit code alone), `jump` by a far
   * JMP or CALL that names the segment (no change of CPL), `return` goes back to the selector's RPL. Leaves the descriptor in
   * `descriptor`, marked accessed.
   */
  loadCode(selector: number, kind: 'gate' | 'jump' | 'return', external: number): number {
    const { registers, events } = this.#parts;
    if ((selector & 0xfffc) === 0) return events.raiseWith(VECTOR.GP, external);
    const reason = this.read(selector, external);
    if (reason !== 0) return reason;
    const error = (selector & 0xfffc) | external;
    const { attributes } = this.descriptor;
    const isCode = (attributes & (ATTRIBUTE.S | ATTRIBUTE.CODE)) === (ATTRIBUTE.S | ATTRIBUTE.CODE);
    if (!isCode) return events.raiseWith(VECTOR.GP, error);
    const conforming = (attributes & ATTRIBUTE.CONFORMING) !== 0;
    const privileged = dpl(attributes);
    const rpl = selector & 3;
    if (kind === 'gate') {
      if (privileged > registers.cpl) return events.raiseWith(VECTOR.GP, error);
    } else if (kind === 'jump') {
      const { cpl } = registers;
      const allowed = conforming ? privileged <= cpl : rpl <= cpl && privileged === cpl;
      if (!allowed) return events.raiseWith(VECTOR.GP, error);
    } else {
      if (rpl < registers.cpl || (conforming ? privileged > rpl : privileged !== rpl)) {
        return events.raiseWith(VECTOR.GP, error);
      }
    }
    if ((attributes & ATTRIBUTE.P) === 0) return events.raiseWith(VECTOR.NP, error);
    if (inLongMode(registers)) {
      const long = (attributes & ATTRIBUTE.L) !== 0;
      if ((long && (attributes & ATTRIBUTE.D) !== 0) || (!long && kind === 'gate'))
        return events.raiseWith(VECTOR.GP, error);
    }
    return this.markAccessed();
  }

  /**
   * Checks a selector for SS at privilege `cpl`; a null selector is legal for 64-bit code below CPL 3. `into` is what the code behind it is,
   * `vector` what a bad selector raises (#TS for one from a TSS).
   */
  loadStack(
    selector: number,
    cpl: number,
    into: '64-bit' | 'legacy' = in64BitMode(this.#parts.registers) ? '64-bit' : 'legacy',
    vector: number = VECTOR.GP,
  ): number {
    const { events } = this.#parts;
    const { descriptor } = this;
    if ((selector & 0xfffc) === 0) {
      if (into === 'legacy' || cpl === 3 || (selector & 3) !== cpl) return events.raiseWith(vector, 0);
      descriptor.attributes = cpl << 5;
      descriptor.limit = 0;
      descriptor.base = 0n;
      return 0;
    }
    const reason = this.read(selector, 0, vector);
    if (reason !== 0) return reason;
    const error = selector & 0xfffc;
    const { attributes } = descriptor;
    const isStack =
      (attributes & (ATTRIBUTE.S | ATTRIBUTE.CODE | ATTRIBUTE.WRITABLE)) ===
      (ATTRIBUTE.S | ATTRIBUTE.WRITABLE);
    if ((selector & 3) !== cpl || !isStack || dpl(attributes) !== cpl) return events.raiseWith(vector, error);
    if ((attributes & ATTRIBUTE.P) === 0) return events.raiseWith(VECTOR.SS, error);
    return this.markAccessed();
  }

  /** Real and virtual-8086 mode: the base follows from the selector, limit and attributes stay as they are. */
  putReal(segment: number, selector: number): void {
    const { registers } = this.#parts;
    const base = BigInt(selector) << 4n;
    registers.setSegment(segment, selector, registers.attributes(segment), registers.limit(segment), base);
  }

  /** MOV, POP or a far pointer's load of SS, ES, DS, FS or GS. */
  load(segment: number, selector: number): number {
    if (segment !== SAVE.SS) return this.#loadData(segment, selector);
    const { registers } = this.#parts;
    if (hasRealSegments(registers)) {
      this.putReal(SAVE.SS, selector);
      return 0;
    }
    const reason = this.loadStack(selector, registers.cpl);
    if (reason === 0) this.put(SAVE.SS, selector);
    return reason;
  }

  #loadData(segment: number, selector: number): number {
    const { registers, events } = this.#parts;
    if (hasRealSegments(registers)) {
      this.putReal(segment, selector);
      return 0;
    }
    if ((selector & 0xfffc) === 0) {
      // AMD keeps the hidden base of a null selector (no NullSelectorClearsBase on this chip).
      registers.setSegment(segment, selector, 0, 0, registers.base(segment));
      return 0;
    }
    const reason = this.read(selector, 0);
    if (reason !== 0) return reason;
    const error = selector & 0xfffc;
    const { descriptor } = this;
    const { attributes } = descriptor;
    const isCode = (attributes & ATTRIBUTE.CODE) !== 0;
    const readable = (attributes & ATTRIBUTE.S) !== 0 && (!isCode || (attributes & ATTRIBUTE.WRITABLE) !== 0);
    const conforming = isCode && (attributes & ATTRIBUTE.CONFORMING) !== 0;
    const privilege = Math.max(registers.cpl, selector & 3);
    if (!readable || (!conforming && privilege > dpl(attributes))) return events.raiseWith(VECTOR.GP, error);
    if ((attributes & ATTRIBUTE.P) === 0) return events.raiseWith(VECTOR.NP, error);
    const marked = this.markAccessed();
    if (marked !== 0) return marked;
    this.put(segment, selector);
    return 0;
  }

  /** LLDT (`type` 2) and LTR (available TSS, 9): descriptors of 16 bytes in long mode, else of 8, and 16-bit TSSs (1) too. */
  loadSystem(register: number, selector: number, type: number): number {
    const { registers, events, access } = this.#parts;
    if ((selector & 0xfffc) === 0) {
      if (register === SAVE.TR) return events.raiseWith(VECTOR.GP, 0);
      registers.setSegment(register, selector, 0, 0, 0n);
      return 0;
    }
    const error = selector & 0xfffc;
    const long = inLongMode(registers);
    if ((selector & 4) !== 0 || (selector & 0xfff8) + (long ? 15 : 7) > registers.limit(SAVE.GDTR)) {
      return events.raiseWith(VECTOR.GP, error);
    }
    const reason = this.read(selector, 0);
    if (reason !== 0) return reason;
    const { descriptor } = this;
    const { attributes, address } = descriptor;
    const small = !long && type === 9 && (attributes & 0x1f) === 1;
    if ((attributes & 0x1f) !== type && !small) return events.raiseWith(VECTOR.GP, error);
    if ((attributes & ATTRIBUTE.P) === 0) return events.raiseWith(VECTOR.NP, error);
    let { base } = descriptor;
    if (long) {
      const upper = access.loadLong(address + 8n, PRIVILEGE.IMPLICIT);
      if (upper !== 0) return upper;
      base = BigInt.asUintN(64, base | (access.value << 32n));
      if (!isCanonicalAddress(base)) return events.raiseWith(VECTOR.GP, error);
    }
    let loaded = attributes;
    if (register === SAVE.TR) {
      loaded |= 2;
      const byte = BigInt(loaded & 0xff);
      const marked = access.storeSized(address + BigInt(ACCESSED_BYTE), byte, 1, PRIVILEGE.IMPLICIT);
      if (marked !== 0) return marked;
    }
    registers.setSegment(register, selector, loaded, descriptor.limit, base);
    return 0;
  }

  /** The hidden part from `descriptor`. */
  put(segment: number, selector: number): void {
    const { attributes, limit, base } = this.descriptor;
    this.#parts.registers.setSegment(segment, selector, attributes, limit, base);
  }
}
