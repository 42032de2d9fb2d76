/**
 * Guest memory from generated code: a look into the TLB, and what happens when it is not there. An access gets a host address:
 * the guest's byte itself on a hit; STATE.DATA after the slow path on a miss.
 */
import { STATE, TLB, TLB_ENTRIES } from '../state.ts';
import { unsigned } from '../wasm/bytes.ts';
import { type Code, call, type FunctionHandle, type Local } from '../wasm/code.ts';
import type { ModuleBuilder } from '../wasm/module.ts';
import { type I32, type I64, i32, i64, select, type V128, value } from '../wasm/value.ts';

/** What the module imports, as docs/CORE.md says. */
export interface SlowPath {
  readonly load: FunctionHandle;
  readonly store: FunctionHandle;
  readonly probe: FunctionHandle;
  readonly system: FunctionHandle;
}

/** Functions that handlers call on a miss: (state, linear address, bytes) to a host address, or a LEAVE code below 16. */
export interface MissFunctions {
  readonly load: FunctionHandle;
  readonly update: FunctionHandle;
  /** To 0 or a LEAVE code; the data are in STATE.DATA. */
  readonly store: FunctionHandle;
}

/** LEAVE codes are below, host addresses above. */
const FIRST_ADDRESS = 16;
const INDEX_MASK = (TLB_ENTRIES - 1) << 4;

export function importSlowPath(module: ModuleBuilder): SlowPath {
  return {
    load: module.import('load', ['i32', 'i32'], 'i32'),
    store: module.import('store', ['i32', 'i32'], 'i32'),
    probe: module.import('probe', ['i32', 'i32'], 'i32'),
    system: module.import('system', ['i32', 'i32'], 'i32'),
  };
}

/** 1 unless bits 63:47 are all alike. */
export const isNotCanonical = (linear: I64): I32 => i64.gtU(i64.add(i64.shrS(linear, 47), 1), 1);

/** Address of the TLB entry for `linear`, without the TLB's own offset. */
export const tlbEntry = (tlb: I32, linear: I64): I32 =>
  i32.add(tlb, i32.and(i32.wrap(i64.shrU(linear, 8)), INDEX_MASK));

/** 1 if all `bytes` from `linear` on lie in the page of the entry. */
const hits = (entry: I32, table: number, linear: I64, bytes: number): I32 =>
  i64.eq(i64.and(bytes === 1 ? linear : i64.add(linear, bytes - 1), -4096), i64.load(entry, table + TLB.TAG));

const hostAddress = (entry: I32, table: number, linear: I64): I32 =>
  i32.add(i32.load(entry, table + TLB.ADDEND), i32.wrap(linear));

/** Base of the TLB set in use. */
export const tlbBase = (state: I32): I32 => i32.add(state, i32.load(state, STATE.TLB_SET));

export function defineMissFunctions(module: ModuleBuilder, slow: SlowPath): MissFunctions {
  const parameters = ['i32', 'i64', 'i32'] as const;
  const load = module.define(parameters, 'i32', (code) => {
    const [state, linear, bytes] = missParameters(code);
    code.store64(state, STATE.ADDRESS, linear);
    const reason = code.let(call('i32', slow.load, state, bytes));
    code.if(reason, () => code.return(reason));
    code.return(i32.add(state, STATE.DATA));
  });
  const store = module.define(parameters, 'i32', (code) => {
    const [state, linear, bytes] = missParameters(code);
    code.store64(state, STATE.ADDRESS, linear);
    code.return(call('i32', slow.store, state, bytes));
  });
  const update = module.define(parameters, 'i32', (code) => {
    const [state, linear, bytes] = missParameters(code);
    code.store64(state, STATE.ADDRESS, linear);
    const reason = code.let(call('i32', slow.probe, state, bytes));
    code.if(reason, () => code.return(reason));
    const entry = code.let(tlbEntry(tlbBase(state), linear));
    const last = i64.add(linear, i64.sub(i64.fromI32U(bytes), 1));
    code.if(i64.eq(i64.and(last, -4096), i64.load(entry, STATE.WRITE_TLB + TLB.TAG)), () =>
      code.return(hostAddress(entry, STATE.WRITE_TLB, linear)),
    );
    code.set(reason, call('i32', slow.load, state, bytes));
    code.if(reason, () => code.return(reason));
    code.return(i32.add(state, STATE.DATA));
  });
  return { load, store, update };
}

function missParameters(code: Code): [Local<'i32'>, Local<'i64'>, Local<'i32'>] {
  return [code.parameter('i32', 0), code.parameter('i64', 1), code.parameter('i32', 2)];
}

/** What an access needs of the place where it is emitted. */
export interface AccessPlace {
  readonly code: Code;
  readonly state: Local<'i32'>;
  readonly tlb: I32;
  /** Functions for a miss; or, in a place that makes no calls, `goCold` leaves for one that does. */
  readonly misses: MissFunctions | undefined;
  goCold(): void;
  leave(reason: I32): void;
}

/** Host address to read `bytes` from. */
export function readAddress(place: AccessPlace, linear: I64, bytes: number): Local<'i32'> {
  return translate(place, linear, bytes, STATE.READ_TLB, place.misses?.load);
}

/** Host address to read `bytes` from and then to write to; `finishUpdate` must follow the write. */
export function updateAddress(place: AccessPlace, linear: I64, bytes: number): Local<'i32'> {
  return translate(place, linear, bytes, STATE.WRITE_TLB, place.misses?.update);
}

function translate(
  { code, tlb, state, leave, goCold }: AccessPlace,
  linear: I64,
  bytes: number,
  table: number,
  miss: FunctionHandle | undefined,
): Local<'i32'> {
  const entry = code.let(tlbEntry(tlb, linear));
  if (!miss) {
    code.if(i32.eqz(hits(entry, table, linear, bytes)), goCold);
    code.set(entry, hostAddress(entry, table, linear));
    return entry;
  }
  code.if(
    hits(entry, table, linear, bytes),
    () => code.set(entry, hostAddress(entry, table, linear)),
    () => {
      code.set(entry, call('i32', miss, state, linear, i32.const(bytes)));
      code.if(i32.ltU(entry, FIRST_ADDRESS), () => leave(entry));
    },
  );
  return entry;
}

/** After a write to an address that `updateAddress` gave: hands what went to STATE.DATA to the slow path. */
export function finishUpdate(
  { code, state, misses, leave }: AccessPlace,
  host: I32,
  linear: I64,
  bytes: number,
): void {
  if (!misses) return;
  code.if(i32.eq(host, i32.add(state, STATE.DATA)), () => {
    const reason = code.let(call('i32', misses.store, state, linear, i32.const(bytes)));
    code.if(reason, () => leave(reason));
  });
}

/** Writes `bytes` at `linear`; `put` stores them at a host address plus an offset. */
export function writeMemory(
  { code, tlb, state, misses, leave, goCold }: AccessPlace,
  linear: I64,
  bytes: number,
  put: (host: I32, offset: number) => void,
): void {
  const entry = code.let(tlbEntry(tlb, linear));
  if (!misses) {
    code.if(i32.eqz(hits(entry, STATE.WRITE_TLB, linear, bytes)), goCold);
    put(hostAddress(entry, STATE.WRITE_TLB, linear), 0);
    return;
  }
  code.if(
    hits(entry, STATE.WRITE_TLB, linear, bytes),
    () => put(hostAddress(entry, STATE.WRITE_TLB, linear), 0),
    () => {
      put(state, STATE.DATA);
      code.set(entry, call('i32', misses.store, state, linear, i32.const(bytes)));
      code.if(entry, () => leave(entry));
    },
  );
}

/** Host address of `linear` and the bytes that follow it in its page, none where the TLB misses. */
export function addressInPage(
  { code, tlb }: AccessPlace,
  linear: I64,
  access: 'read' | 'write',
): { host: Local<'i32'>; bytes: Local<'i64'> } {
  const table = access === 'read' ? STATE.READ_TLB : STATE.WRITE_TLB;
  const entry = code.let(tlbEntry(tlb, linear));
  const hit = i64.eq(i64.and(linear, -4096), i64.load(entry, table + TLB.TAG));
  const left = i64.sub(4096, i64.and(linear, 4095));
  const bytes = code.let(select(hit, left, i64.const(0)));
  return { host: code.let(hostAddress(entry, table, linear)), bytes };
}

export function loadSigned(address: I32, offset: number, size: number): I64 {
  if (size === 8) return i64.load8S(address, offset);
  if (size === 16) return i64.load16S(address, offset);
  if (size === 32) return i64.load32S(address, offset);
  return i64.load(address, offset);
}

export function loadUnsigned(address: I32, offset: number, size: number): I64 {
  if (size === 8) return i64.load8U(address, offset);
  if (size === 16) return i64.load16U(address, offset);
  if (size === 32) return i64.load32U(address, offset);
  return i64.load(address, offset);
}

export function storeSized(code: Code, address: I32, offset: number, what: I64, size: number): void {
  if (size === 8) code.store8(address, offset, what);
  else if (size === 16) code.store16(address, offset, what);
  else if (size === 32) code.store32(address, offset, what);
  else code.store64(address, offset, what);
}

export const loadVector = (address: I32, offset = 0): V128 =>
  value('v128', address.bytes, [0xfd, 0x00, 0], unsigned(offset));
