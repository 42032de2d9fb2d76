/**
 * The interpreter as a WebAssembly module: `run(state, budget, record)` is one loop over a `br_table` of handlers. Hot handlers
 * lie inside it; the others are functions `(state, record)` that return 0 or a LEAVE code, because a function of all handlers
 * would be too large for the engine to optimise soon.
 *
 *     block spent / leave          how it ends
 *       loop jump                  a linear address to a page map, through the fetch TLB
 *         loop next                one record after the other
 */
import { RECORD, RECORD_BYTES } from '../record.ts';
import { LEAVE, STATE, TLB } from '../state.ts';
import { type Code, call, type FunctionHandle, type Label, type Local } from '../wasm/code.ts';
import { ModuleBuilder } from '../wasm/module.ts';
import { type I32, type I64, i32, i64 } from '../wasm/value.ts';
import { BUILT_IN, catalog, type Handler } from './catalog.ts';
import {
  defineMissFunctions,
  importSlowPath,
  type MissFunctions,
  type SlowPath,
  tlbBase,
  tlbEntry,
} from './memory-access.ts';
import { type Place, RecordContext } from './record-context.ts';

export interface InterpreterModule {
  readonly bytes: Uint8Array;
  /** Names of the handlers by number. */
  readonly handlers: readonly string[];
}

export function emitInterpreter(): InterpreterModule {
  const module = new ModuleBuilder();
  const slow = importSlowPath(module);
  const misses = defineMissFunctions(module, slow);
  const handlers = catalog();
  const cold = new Map<Handler, FunctionHandle>();
  for (const handler of handlers) {
    if (!handler.hot) cold.set(handler, defineCold(module, handler, misses));
  }
  const run = module.define(['i32', 'i32', 'i32'], 'i32', (code) =>
    new RunEmitter(code, slow, misses).emit(handlers, cold),
  );
  module.export('run', run);
  return { bytes: module.encode(), handlers: [...BUILT_IN, ...handlers.map(({ name }) => name)] };
}

function defineCold(module: ModuleBuilder, handler: Handler, misses: MissFunctions): FunctionHandle {
  return module.define(['i32', 'i32'], 'i32', (code) => {
    const state = code.parameter('i32', 0);
    const onlyInline = (what: string) => () => {
      throw new Error(`${handler.name}: ${what} needs a hot handler`);
    };
    const place: Place = {
      code,
      state,
      record: code.parameter('i32', 1),
      tlb: code.let(tlbBase(state)),
      misses,
      leave: (reason) => code.return(reason),
      branchInPage: onlyInline('a branch'),
      jump: onlyInline('a jump'),
      system: onlyInline('a system call'),
    };
    handler.operation.emit(new RecordContext(place, handler.operation, handler.size, handler.form));
    code.return(i32.const(0));
  });
}

class RunEmitter {
  readonly #code: Code;
  readonly #slow: SlowPath;
  readonly #misses: MissFunctions;
  readonly #state: Local<'i32'>;
  readonly #budget: Local<'i32'>;
  readonly #record: Local<'i32'>;
  /** RETIRED when `run` began plus the budget it began with. */
  readonly #horizon: Local<'i64'>;
  readonly #tlb: Local<'i32'>;
  /** Address of the page map's word through which the last branch went. */
  readonly #slot: Local<'i32'>;
  readonly #target: Local<'i64'>;
  readonly #reason: Local<'i32'>;
  #leave!: Label;
  #spent!: Label;
  #jump!: Label;
  #next!: Label;

  constructor(code: Code, slow: SlowPath, misses: MissFunctions) {
    this.#code = code;
    this.#slow = slow;
    this.#misses = misses;
    this.#state = code.parameter('i32', 0);
    this.#budget = code.parameter('i32', 1);
    this.#record = code.parameter('i32', 2);
    this.#horizon = code.local('i64');
    this.#tlb = code.local('i32');
    this.#slot = code.local('i32');
    this.#target = code.local('i64');
    this.#reason = code.local('i32');
  }

  emit(handlers: readonly Handler[], cold: ReadonlyMap<Handler, FunctionHandle>): void {
    const code = this.#code;
    const state = this.#state;
    code.set(this.#tlb, tlbBase(state));
    code.set(this.#horizon, i64.add(i64.load(state, STATE.RETIRED), i64.fromI32S(this.#budget)));
    code.set(this.#target, i64.load(state, STATE.RIP));
    code.block((spent) => {
      this.#spent = spent;
      code.block((leave) => {
        this.#leave = leave;
        code.loop((jump) => {
          this.#jump = jump;
          code.if(i32.eqz(this.#record), () => this.#lookUpTarget());
          code.loop((next) => {
            this.#next = next;
            this.#dispatch(handlers, cold);
          });
        });
      });
      this.#leaveAtRecord();
    });
    this.#leaveAtSlot();
  }

  /** From `target` to a record; RIP is not in a page map's reach before that, so both ways out write it here. */
  #lookUpTarget(): void {
    const code = this.#code;
    code.scope(() => {
      const page = code.let(i64.and(this.#target, -4096));
      const entry = code.let(tlbEntry(this.#tlb, this.#target));
      const leaveWith = (reason: number) => {
        code.store64(this.#state, STATE.RIP, this.#target);
        code.store64(this.#state, STATE.PAGE_BASE, page);
        code.store64(this.#state, STATE.RETIRED, this.#retiredAt(i32.const(0)));
        code.return(i32.const(reason));
      };
      code.if(i32.leS(this.#budget, 0), () => leaveWith(LEAVE.BUDGET));
      code.if(i64.ne(page, i64.load(entry, STATE.FETCH_TLB + TLB.TAG)), () => leaveWith(LEAVE.FETCH));
      code.store64(this.#state, STATE.PAGE_BASE, page);
      const offset = i32.and(i32.wrap(this.#target), 0xfff);
      code.set(this.#slot, i32.add(i32.load(entry, STATE.FETCH_TLB + TLB.ADDEND), i32.shl(offset, 2)));
      this.#enterSlot();
    });
  }

  /** The record at `slot`, and its ordinal back on the budget. */
  #enterSlot(): void {
    const code = this.#code;
    code.set(this.#record, i32.load(this.#slot));
    code.set(this.#budget, i32.add(this.#budget, i32.load16U(this.#record, RECORD.ORDINAL)));
  }

  /** Instructions retired when all before `record` are done. */
  #retiredAt(ordinal: I32): I64 {
    return i64.sub(this.#horizon, i64.fromI32S(i32.sub(this.#budget, ordinal)));
  }

  #recordAddress(): I64 {
    const offset = i64.load16U(this.#record, RECORD.OFFSET);
    return i64.add(i64.load(this.#state, STATE.PAGE_BASE), offset);
  }

  /** RIP and RETIRED from `record`; after RESUME, the slow path has set RIP and the instruction counts as done. */
  #leaveAtRecord(): void {
    const code = this.#code;
    const state = this.#state;
    code.if(
      i32.eq(this.#reason, LEAVE.RESUME),
      () => code.store64(state, STATE.RETIRED, this.#retiredAt(i32.load16U(this.#record, RECORD.THROUGH))),
      () => {
        code.store64(state, STATE.RIP, this.#recordAddress());
        code.store64(state, STATE.RETIRED, this.#retiredAt(i32.load16U(this.#record, RECORD.ORDINAL)));
      },
    );
    code.return(this.#reason);
  }

  /** At the target of a branch inside the page: no budget left, or nothing decoded there. */
  #leaveAtSlot(): void {
    const code = this.#code;
    const offset = i64.fromI32U(i32.and(i32.shrU(this.#slot, 2), 0xfff));
    code.store64(this.#state, STATE.RIP, i64.add(i64.load(this.#state, STATE.PAGE_BASE), offset));
    code.store64(this.#state, STATE.RETIRED, this.#retiredAt(i32.load16U(this.#record, RECORD.ORDINAL)));
    code.return(this.#reason);
  }

  #dispatch(handlers: readonly Handler[], cold: ReadonlyMap<Handler, FunctionHandle>): void {
    const bodies: (() => void)[] = [
      () => this.#fetch(),
      () => this.#guard(),
      () => this.#callSystem(),
      () => this.#leaveWith(i32.const(LEAVE.STOP)),
      ...handlers.map((handler) => () => this.#handler(handler, cold.get(handler))),
    ];
    this.#nest(bodies, bodies.length, []);
  }

  /** Blocks inside each other, the table in the innermost; each body follows the end of its block. */
  #nest(bodies: readonly (() => void)[], left: number, labels: Label[]): void {
    const code = this.#code;
    if (left === 0) {
      code.brTable(i32.load(this.#record, RECORD.HANDLER), labels.toReversed(), labels.at(-1)!);
      return;
    }
    code.block((label) => this.#nest(bodies, left - 1, [...labels, label]));
    code.scope(bodies[left - 1]!);
  }

  #handler(handler: Handler, function_: FunctionHandle | undefined): void {
    const code = this.#code;
    if (function_) {
      code.set(this.#reason, call('i32', function_, this.#state, this.#record));
      code.brIf(this.#leave, this.#reason);
    } else {
      handler.operation.emit(new RecordContext(this.#place(), handler.operation, handler.size, handler.form));
    }
    this.#advance();
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
      misses: this.#misses,
      leave: (reason) => this.#leaveWith(reason),
      branchInPage: () => this.#branchInPage(),
      jump: (address) => this.#jumpTo(address),
      system: () => this.#callSystem(),
    };
  }

  #leaveWith(reason: I32): void {
    this.#code.set(this.#reason, reason);
    this.#code.br(this.#leave);
  }

  #branchInPage(): void {
    const code = this.#code;
    this.#countThrough();
    code.set(this.#slot, i32.load(this.#record, RECORD.TARGET));
    code.if(i32.leS(this.#budget, 0), () => {
      code.set(this.#record, i32.const(0));
      code.set(this.#reason, i32.const(LEAVE.BUDGET));
      code.br(this.#spent);
    });
    this.#enterSlot();
    code.br(this.#next);
  }

  #jumpTo(address: I64): void {
    const code = this.#code;
    code.set(this.#target, address);
    this.#countThrough();
    code.set(this.#record, i32.const(0));
    code.br(this.#jump);
  }

  #countThrough(): void {
    const done = i32.load16U(this.#record, RECORD.THROUGH);
    this.#code.set(this.#budget, i32.sub(this.#budget, done));
  }

  /** Record 0 means that the page map has nothing at `slot`; another record with handler 0 was thrown away. */
  #fetch(): void {
    this.#code.set(this.#reason, i32.const(LEAVE.FETCH));
    this.#code.brIf(this.#spent, i32.eqz(this.#record));
    this.#code.br(this.#leave);
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

  #callSystem(): void {
    const code = this.#code;
    code.store64(this.#state, STATE.RIP, this.#recordAddress());
    code.store64(this.#state, STATE.RETIRED, this.#retiredAt(i32.load16U(this.#record, RECORD.ORDINAL)));
    code.set(this.#reason, call('i32', this.#slow.system, this.#state, this.#record));
    code.brIf(this.#leave, this.#reason);
    this.#advance();
  }
}
