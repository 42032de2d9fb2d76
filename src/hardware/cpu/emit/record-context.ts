/**
 * `OperandContext` for the interpreter: operands are found through the record that is being executed. The same class serves
 * handlers inline in `run` and those that are functions of their own; `Place` says how either leaves or branches.
 */
import { VECTOR } from '../../../abi/x86.ts';
import { RECORD } from '../record.ts';
import { zeroExtend } from '../semantics/flags.ts';
import type { OperandContext, OperandIndex, Operation, Size } from '../semantics/operation.ts';
import { LEAVE, STATE } from '../state.ts';
import type { Local } from '../wasm/code.ts';
import { type I32, type I64, i32, i64, type V128 } from '../wasm/value.ts';
import type { Handler } from './catalog.ts';
import { LAYER } from './layers.ts';
import {
  type AccessPlace,
  addressInPage,
  finishUpdate,
  isNotCanonical,
  loadSigned,
  loadUnsigned,
  loadVector,
  readAddress,
  storeSized,
  updateAddress,
  writeMemory,
} from './memory-access.ts';

export interface Place extends AccessPlace {
  readonly record: Local<'i32'>;
  branchInPage(): void;
  jump(address: I64): void;
}

const FLAG_WORDS: ReadonlySet<number> = new Set([STATE.FLAG_ZR, STATE.FLAG_SR, STATE.FLAG_CV, STATE.FLAG_OV]);
const OPERAND_ADDRESS = [RECORD.A0, RECORD.A1, RECORD.A2] as const;

export class RecordContext implements OperandContext {
  readonly code;
  readonly size: Size;
  readonly #place: Place;
  readonly #memory: OperandIndex | undefined;
  readonly #quiet: boolean;
  readonly #destination: Operation['destination'];
  #update: { host: Local<'i32'>; linear: I64 } | undefined;

  constructor(place: Place, { operation, size, form, quiet }: Handler) {
    this.code = place.code;
    this.size = size;
    this.#place = place;
    this.#quiet = quiet;
    this.#memory = form === 'registers' ? undefined : form === 'memory0' ? 0 : 1;
    this.#destination = operation.destination ?? 'update';
  }

  get inHotLoop(): boolean {
    return this.#place.misses === undefined;
  }

  inMemory(operand: OperandIndex): boolean {
    return operand === this.#memory;
  }

  read(operand: OperandIndex, size = this.size): I64 {
    return this.code.let(loadSigned(this.#readable(operand, size), 0, size));
  }

  readUnsigned(operand: OperandIndex, size = this.size): I64 {
    return this.code.let(loadUnsigned(this.#readable(operand, size), 0, size));
  }

  readVector(operand: OperandIndex): V128 {
    return this.code.let(loadVector(this.#readable(operand, 128)));
  }

  write(operand: OperandIndex, what: I64, size = this.size): void {
    if (operand !== this.#memory) {
      const address = this.#operandAddress(operand);
      if (size === 32) this.code.store64(address, 0, zeroExtend(what, 32));
      else storeSized(this.code, address, 0, what, size);
    } else if (this.#update) {
      storeSized(this.code, this.#update.host, 0, what, size);
      finishUpdate(this.#place, this.#update.host, this.#update.linear, size / 8);
    } else {
      this.store(this.effectiveAddress(), what, size);
    }
  }

  writeVector(operand: OperandIndex, what: V128): void {
    if (operand === this.#memory && this.#update) {
      this.code.storeV128(this.#update.host, 0, what);
      finishUpdate(this.#place, this.#update.host, this.#update.linear, 16);
    } else if (operand === this.#memory) {
      const linear = this.effectiveAddress();
      writeMemory(this.#place, linear, 16, (host, offset) => this.code.storeV128(host, offset, what));
    } else {
      this.code.storeV128(this.#operandAddress(operand), 0, what);
    }
  }

  readRegister(register: number, size = this.size): I64 {
    return loadSigned(this.#place.state, STATE.GPR + 8 * register, size);
  }

  readRegisterUnsigned(register: number, size = this.size): I64 {
    return loadUnsigned(this.#place.state, STATE.GPR + 8 * register, size);
  }

  writeRegister(register: number, what: I64, size = this.size): void {
    const offset = STATE.GPR + 8 * register;
    if (size === 32) this.setState(offset, zeroExtend(what, 32));
    else storeSized(this.code, this.#place.state, offset, what, size);
  }

  state(offset: number): I64 {
    return i64.load(this.#place.state, offset);
  }

  setState(offset: number, what: I64): void {
    if (this.#quiet && FLAG_WORDS.has(offset)) return;
    this.code.store64(this.#place.state, offset, what);
  }

  setStateVector(offset: number, what: V128): void {
    this.code.storeV128(this.#place.state, offset, what);
  }

  load(address: I64, size: Size): I64 {
    return this.code.let(loadUnsigned(readAddress(this.#place, this.code.let(address), size / 8), 0, size));
  }

  store(address: I64, what: I64, size: Size): void {
    const fixed = this.code.let(what);
    writeMemory(this.#place, this.code.let(address), size / 8, (host, offset) =>
      storeSized(this.code, host, offset, fixed, size),
    );
  }

  loadForWrite(address: I64, size: Size): I64 {
    const host = updateAddress(this.#place, this.code.let(address), size / 8);
    return this.code.let(loadUnsigned(host, 0, size));
  }

  checkStore(address: I64, size: Size): void {
    updateAddress(this.#place, this.code.let(address), size / 8);
  }

  inPlace(address: I64, access: 'read' | 'write'): { host: I32; bytes: I64 } {
    return addressInPage(this.#place, address, access);
  }

  immediate(): I64 {
    return i64.load(this.#place.record, RECORD.IMMEDIATE);
  }

  effectiveAddress(): I64 {
    const { record } = this.#place;
    const base = i64.load(i32.load(record, RECORD.BASE));
    const index = i64.load(i32.load(record, RECORD.INDEX));
    const scaled = i64.shl(index, i64.load32U(record, RECORD.SCALE));
    return this.code.let(i64.add(i64.add(base, scaled), i64.load(record, RECORD.DISPLACEMENT)));
  }

  nextAddress(): I64 {
    const { record } = this.#place;
    const offset = i64.add(i64.load16U(record, RECORD.OFFSET), i64.load8U(record, RECORD.LENGTH));
    return i64.add(this.state(STATE.PAGE_BASE), offset);
  }

  raise(vector: number, errorCode?: number): void {
    const { state } = this.#place;
    this.code.storeI32(state, STATE.EXCEPTION_VECTOR, vector);
    this.code.storeI32(state, STATE.EXCEPTION_ERROR, errorCode ?? 0);
    this.code.storeI32(state, STATE.EXCEPTION_HAS_ERROR, errorCode === undefined ? 0 : 1);
    this.#place.leave(i32.const(LEAVE.EXCEPTION));
  }

  restart(): void {
    this.#place.leave(i32.const(LAYER.RESTART));
  }

  leaveToSystem(): void {
    if (this.inHotLoop) this.#place.goCold();
    else this.#place.leave(i32.const(LAYER.SYSTEM));
  }

  branchInPage(): void {
    this.#place.branchInPage();
  }

  branchOutOfPage(): void {
    this.jump(this.targetOutOfPage());
  }

  targetOutOfPage(): I64 {
    return this.code.let(i64.add(this.state(STATE.PAGE_BASE), this.immediate()));
  }

  goOnInNextPage(): void {
    this.#place.jump(this.targetOutOfPage());
  }

  jump(address: I64): void {
    const target = this.code.let(address);
    // The hot loop sees it when it looks the target up.
    if (!this.inHotLoop) this.checkTarget(target);
    this.#place.jump(target);
  }

  checkTarget(address: I64, before?: () => void): void {
    this.code.if(isNotCanonical(address), () => {
      if (this.inHotLoop) {
        this.#place.goCold();
        return;
      }
      before?.();
      this.raise(VECTOR.GP, 0);
    });
  }

  #operandAddress(operand: OperandIndex): I32 {
    return i32.load(this.#place.record, OPERAND_ADDRESS[operand]);
  }

  #readable(operand: OperandIndex, size: number): I32 {
    if (operand !== this.#memory) return this.#operandAddress(operand);
    if (this.#update) return this.#update.host;
    const linear = this.effectiveAddress();
    if (operand === 0 && this.#destination === 'update') {
      const host = updateAddress(this.#place, linear, size / 8);
      this.#update = { host, linear };
      return host;
    }
    return readAddress(this.#place, linear, size / 8);
  }
}
