/** What the interpreter's two layers tell each other besides LEAVE codes; and what both compute from a record. */
import { RECORD } from '../record.ts';
import { STATE } from '../state.ts';
import type { Code } from '../wasm/code.ts';
import { type I32, type I64, i32, i64 } from '../wasm/value.ts';

/** How `hot` and cold handlers come back. Below are LEAVE codes: RUN_RECORD is the instruction at which it stopped. */
export const LAYER = {
  /** The record needs its cold handler. */
  COLD: 8,
  /** A cold handler has branched to RIP; RUN_BUDGET is what is left. */
  BRANCHED: 9,
  /** A cold handler has done nothing: the record is a `system` record. */
  SYSTEM: 10,
  /** A cold handler wants its record to run again, later: LEAVE.BUDGET at the instruction. */
  RESTART: 16,
  /** Plus a LEAVE code: stopped at the page map's word RUN_SLOT, before there is a record. */
  AT_SLOT: 32,
  /** Plus a LEAVE code: stopped at RIP. */
  AT_RIP: 64,
} as const;
export const LEAVE_MASK = 7;

/** Linear address of a record's instruction. */
export const recordAddress = (state: I32, record: I32): I64 =>
  i64.add(i64.load(state, STATE.PAGE_BASE), i64.load16U(record, RECORD.OFFSET));

/** Linear address for which a page map's word stands: page maps are aligned to their 16 KiB. */
export const slotAddress = (state: I32, slot: I32): I64 =>
  i64.add(i64.load(state, STATE.PAGE_BASE), i64.fromI32U(i32.and(i32.shrU(slot, 2), 0xfff)));

export function saveProgress(code: Code, state: I32, { record, budget }: { record: I32; budget: I32 }): void {
  code.storeI32(state, STATE.RUN_RECORD, record);
  code.storeI32(state, STATE.RUN_BUDGET, budget);
}
