/**
 * `hot(state, record, budget)`: runs records as long as their handlers are hot, and looks up the targets of jumps. It makes no
 * calls. Progress is in RUN_RECORD and RUN_BUDGET when it returns.
 *
 *     block cold                   out, with the record as it was
 *       loop next                  one record after the other
 *         block jumped             to a linear address, whose page map the fetch TLB knows
 *           block taken            to the record's target in this page
 *
 * What many handlers do is behind the end of a block, once: V8 has a lesser register allocator for functions of more than 8192
 * virtual registers, which costs a tenth of the speed.
 */
import { RECORD, RECORD_BYTES } from '../record.ts';
import { LEAVE, STATE, TLB } from '../state.ts';
import type { Code, FunctionHandle, Label, Local } from '../wasm/code.ts';
import type { ModuleBuilder } from '../wasm/module.ts';
import { type I32, type I64, i32, i64 } from '../wasm/value.ts';
import type { Handler } from './catalog.ts';
import { LAYER, saveProgress } from './layers.ts';
import { isNotCanonical, tlbBase, tlbEntry } from './memory-access.ts';
import { type Place, RecordContext } from './record-context.ts';

export function defineHot(module: ModuleBuilder, handlers: readonly Handler[]): FunctionHandle {
  return module.define(['i32', 'i32', 'i32'], 'i32', (code) => new HotLoop(code).emit(handlers));
}

class HotLoop {
  readonly #code: Code;
  readonly #state: Local<'i32'>;
  readonly #record: Local<'i32'>;
  readonly #budget: Local<'i32'>;
  readonly #tlb: Local<'i32'>;
  /** Address of the page map's word through which the last branch went. */
  readonly #slot: Local<'i32'>;
  readonly #target: Local<'i64'>;
  #cold!: Label;
  #jumped!: Label;
  #next!: Label;
  #taken!: Label;

  constructor(code: Code) {
    this.#code = code;
    this.#state = code.parameter('i32', 0);
    this.#record = code.parameter('i32', 1);
    this.#budget = code.parameter('i32', 2);
    this.#tlb = code.local('i32');
    this.#slot = code.local('i32');
    this.#target = code.local('i64');
  }

  emit(handlers: readonly Handler[]): void {
    const code = this.#code;
    code.set(this.#tlb, tlbBase(this.#state));
    code.set(this.#target, i64.load(this.#state, STATE.RIP));
    code.block((cold) => {
      this.#cold = cold;
      code.if(i32.eqz(this.#record), () => this.#lookUpTarget(() => {}));
      code.loop((next) => {
        this.#next = next;
        code.block((jumped) => {
          this.#jumped = jumped;
          code.block((taken) => {
            this.#taken = taken;
            this.#dispatch(handlers);
          });
          this.#take();
        });
        this.#countThrough();
        this.#lookUpTarget(() => this.#backFromNowhere());
        code.br(next);
      });
    });
    this.#leaveWith(i32.const(LAYER.COLD));
  }

  /** From `target` to a record, or out; `beforeLeaving` first. */
  #lookUpTarget(beforeLeaving: () => void): void {
    const code = this.#code;
    code.scope(() => {
      const page = code.let(i64.and(this.#target, -4096));
      const entry = code.let(tlbEntry(this.#tlb, this.#target));
      const spent = i32.leS(this.#budget, 0);
      code.if(i32.or(spent, i64.ne(page, i64.load(entry, STATE.FETCH_TLB + TLB.TAG))), () => {
        beforeLeaving();
        code.set(this.#record, i32.const(0));
        code.store64(this.#state, STATE.RIP, this.#target);
        code.store64(this.#state, STATE.PAGE_BASE, page);
        code.if(spent, () => this.#leaveWith(i32.const(LAYER.AT_RIP + LEAVE.BUDGET)));
        this.#leaveWith(i32.const(LAYER.AT_RIP + LEAVE.FETCH));
      });
      code.store64(this.#state, STATE.PAGE_BASE, page);
      const offset = i32.and(i32.wrap(this.#target), 0xfff);
      code.set(this.#slot, i32.add(i32.load(entry, STATE.FETCH_TLB + TLB.ADDEND), i32.shl(offset, 2)));
      this.#enterSlot();
    });
  }

  /** A branch to an address that is not canonical: its cold handler faults. Such an address is never in the TLB. */
  #backFromNowhere(): void {
    const code = this.#code;
    code.if(isNotCanonical(this.#target), () => {
      code.set(this.#budget, i32.add(this.#budget, i32.load16U(this.#record, RECORD.THROUGH)));
      code.br(this.#cold);
    });
  }

  /** The record at `slot`, and its ordinal back on the budget. */
  #enterSlot(): void {
    const code = this.#code;
    code.set(this.#record, i32.load(this.#slot));
    code.set(this.#budget, i32.add(this.#budget, i32.load16U(this.#record, RECORD.ORDINAL)));
  }

  #leaveWith(reason: I32): void {
    saveProgress(this.#code, this.#state, { record: this.#record, budget: this.#budget });
    this.#code.return(reason);
  }

  /** At the target of a branch inside the page, where there is no budget left or nothing decoded. */
  #leaveAtSlot(reason: number): void {
    this.#code.set(this.#record, i32.const(0));
    this.#code.storeI32(this.#state, STATE.RUN_SLOT, this.#slot);
    this.#leaveWith(i32.const(LAYER.AT_SLOT + reason));
  }

  #dispatch(handlers: readonly Handler[]): void {
    const bodies: (() => void)[] = [
      () => this.#fetch(),
      () => this.#guard(),
      () => this.#leaveWith(i32.const(LEAVE.STOP)),
      ...handlers.map((handler) => () => {
        handler.operation.emit(new RecordContext(this.#place(), handler));
        this.#advance();
      }),
    ];
    this.#nest(bodies, bodies.length, []);
  }

  /** Blocks inside each other, the table in the innermost; each body follows the end of its block. */
  #nest(bodies: readonly (() => void)[], left: number, labels: Label[]): void {
    const code = this.#code;
    if (left === 0) {
      code.brTable(i32.load(this.#record, RECORD.HANDLER), labels.toReversed(), this.#cold);
      return;
    }
    code.block((label) => this.#nest(bodies, left - 1, [...labels, label]));
    code.scope(bodies[left - 1]!);
  }

  #advance(): void {
    this.#code.set(this.#record, i32.add(this.#record, RECORD_BYTES));
    this.#code.br(this.#next);
  }

  #place(): Place {
    return {
      code: this.#code,
      state: this.#state,
      record: this.#record,
      tlb: this.#tlb,
      misses: undefined,
      goCold: () => this.#code.br(this.#cold),
      leave: (reason) => this.#leaveWith(reason),
      branchInPage: () => this.#code.br(this.#taken),
      jump: (address) => this.#jumpTo(address),
    };
  }

  /** The branch of the record, inside its page. */
  #take(): void {
    const code = this.#code;
    this.#countThrough();
    code.set(this.#slot, i32.load(this.#record, RECORD.TARGET));
    code.if(i32.leS(this.#budget, 0), () => this.#leaveAtSlot(LEAVE.BUDGET));
    this.#enterSlot();
    code.br(this.#next);
  }

  #jumpTo(address: I64): void {
    this.#code.set(this.#target, address);
    this.#code.br(this.#jumped);
  }

  #countThrough(): void {
    const done = i32.load16U(this.#record, RECORD.THROUGH);
    this.#code.set(this.#budget, i32.sub(this.#budget, done));
  }

  /** Record 0 means that the page map has nothing at `slot`; another record with handler 0 was thrown away. */
  #fetch(): void {
    this.#code.if(i32.eqz(this.#record), () => this.#leaveAtSlot(LEAVE.FETCH));
    this.#leaveWith(i32.const(LEAVE.FETCH));
  }

  /** The instruction goes on in the next page: is that still the frame at IMMEDIATE? */
  #guard(): void {
    const code = this.#code;
    const next = code.let(i64.add(i64.load(this.#state, STATE.PAGE_BASE), 4096));
    const entry = code.let(tlbEntry(this.#tlb, next));
    const frame = i32.and(i32.load(entry, STATE.FETCH_TLB + TLB.EXTRA), -4096);
    const same = i32.and(
      i64.eq(next, i64.load(entry, STATE.FETCH_TLB + TLB.TAG)),
      i32.eq(frame, i32.load(this.#record, RECORD.IMMEDIATE)),
    );
    code.if(i32.eqz(same), () => this.#leaveWith(i32.const(LEAVE.FETCH)));
    this.#advance();
  }
}
