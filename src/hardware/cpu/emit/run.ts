/**
 * `run(state, budget, record)`, what the core calls: the hot loop, and between its returns the cold handler or system record at which it
 * stopped. Counts retired instructions and sets RIP on the way out. `record` 0 begins at RIP.
 */
import { RECORD, RECORD_BYTES } from '../record.ts';
import { LEAVE, STATE } from '../state.ts';
import { type Code, call, type FunctionHandle, type Label, type Local } from '../wasm/code.ts';
import type { ModuleBuilder } from '../wasm/module.ts';
import { type I64, i32, i64 } from '../wasm/value.ts';
import { BUILT_IN } from './catalog.ts';
import { LAYER, LEAVE_MASK, recordAddress, slotAddress } from './layers.ts';

export interface Layers {
  readonly hot: FunctionHandle;
  /** By place in the catalog. */
  readonly cold: readonly (FunctionHandle | undefined)[];
  /** Number of the first handler that `hot` does not have. */
  readonly firstCold: number;
  readonly system: FunctionHandle;
}

export function defineRun(module: ModuleBuilder, layers: Layers): FunctionHandle {
  return module.define(['i32', 'i32', 'i32'], 'i32', (code) => new Run(code, layers).emit());
}

class Run {
  readonly #code: Code;
  readonly #layers: Layers;
  readonly #state: Local<'i32'>;
  readonly #record: Local<'i32'>;
  readonly #reason: Local<'i32'>;
  /** RETIRED when `run` began plus the budget it began with. */
  readonly #horizon: Local<'i64'>;

  constructor(code: Code, layers: Layers) {
    this.#code = code;
    this.#layers = layers;
    this.#state = code.parameter('i32', 0);
    this.#record = code.parameter('i32', 2);
    this.#reason = code.local('i32');
    this.#horizon = code.local('i64');
  }

  emit(): void {
    const code = this.#code;
    const state = this.#state;
    const budget = code.parameter('i32', 1);
    code.set(this.#horizon, i64.add(i64.load(state, STATE.RETIRED), i64.fromI32S(budget)));
    code.storeI32(state, STATE.RUN_BUDGET, budget);
    code.block((leave) => {
      code.loop((again) => {
        const left = i32.load(state, STATE.RUN_BUDGET);
        code.set(this.#reason, call('i32', this.#layers.hot, state, this.#record, left));
        code.set(this.#record, i32.load(state, STATE.RUN_RECORD));
        code.brIf(leave, i32.ne(this.#reason, LAYER.COLD));
        code.loop((cold) => {
          this.#callCold();
          code.if(i32.eq(this.#reason, LAYER.SYSTEM), () => this.#callSystem());
          this.#goOn({ leave, again, cold });
        });
      });
    });
    this.#leave();
  }

  /** After a cold handler: the next record (there and then if it is cold as well), the target of a branch, or out. */
  #goOn({ leave, again, cold }: { leave: Label; again: Label; cold: Label }): void {
    const code = this.#code;
    code.if(i32.eqz(this.#reason), () => {
      code.set(this.#record, i32.add(this.#record, RECORD_BYTES));
      code.brIf(cold, i32.geU(i32.load(this.#record, RECORD.HANDLER), this.#layers.firstCold));
      code.br(again);
    });
    code.brIf(leave, i32.ne(this.#reason, LAYER.BRANCHED));
    code.set(this.#record, i32.const(0));
    code.br(again);
  }

  #callCold(): void {
    const code = this.#code;
    const { cold } = this.#layers;
    const arms = [...cold, undefined];
    code.block((done) => this.#nest(arms, arms.length, [], done));
  }

  /** One block for each handler, the table in the innermost; the last arm is `system`. */
  #nest(arms: readonly (FunctionHandle | undefined)[], left: number, labels: Label[], done: Label): void {
    const code = this.#code;
    if (left === 0) {
      const number = i32.load(this.#record, RECORD.HANDLER);
      code.brTable(i32.sub(number, BUILT_IN.length), labels.toReversed(), labels[0]!);
      return;
    }
    code.block((label) => this.#nest(arms, left - 1, [...labels, label], done));
    const arm = arms[left - 1];
    if (arm) code.set(this.#reason, call('i32', arm, this.#state, this.#record));
    else if (left === arms.length) this.#callSystem();
    else code.unreachable();
    code.br(done);
  }

  /** The slow path sees RIP at the instruction, and all before it retired. */
  #callSystem(): void {
    const code = this.#code;
    code.store64(this.#state, STATE.RIP, recordAddress(this.#state, this.#record));
    code.store64(this.#state, STATE.RETIRED, this.#retired(RECORD.ORDINAL));
    code.set(this.#reason, call('i32', this.#layers.system, this.#state, this.#record));
  }

  /** Instructions retired before the record, or with it. */
  #retired(field: typeof RECORD.ORDINAL | typeof RECORD.THROUGH): I64 {
    const left = i32.sub(i32.load(this.#state, STATE.RUN_BUDGET), i32.load16U(this.#record, field));
    return i64.sub(this.#horizon, i64.fromI32S(left));
  }

  #leave(): void {
    const code = this.#code;
    const state = this.#state;
    const done = i32.eq(this.#reason, LEAVE.RESUME);
    code.if(
      done,
      () => code.store64(state, STATE.RETIRED, this.#retired(RECORD.THROUGH)),
      () => code.store64(state, STATE.RETIRED, this.#retired(RECORD.ORDINAL)),
    );
    const atRip = i32.or(done, i32.geU(this.#reason, LAYER.AT_RIP));
    code.if(i32.eqz(atRip), () => {
      code.if(
        i32.geU(this.#reason, LAYER.AT_SLOT),
        () => code.store64(state, STATE.RIP, slotAddress(state, i32.load(state, STATE.RUN_SLOT))),
        () => code.store64(state, STATE.RIP, recordAddress(state, this.#record)),
      );
    });
    code.return(i32.and(this.#reason, LEAVE_MASK));
  }
}
