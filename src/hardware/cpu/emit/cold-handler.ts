/** A handler as a function `(state, record)`: 0 when the next record follows, else a LEAVE code or LAYER.BRANCHED. */
import { RECORD } from '../record.ts';
import { STATE } from '../state.ts';
import type { FunctionHandle } from '../wasm/code.ts';
import type { ModuleBuilder } from '../wasm/module.ts';
import { type I64, i32 } from '../wasm/value.ts';
import type { Handler } from './catalog.ts';
import { LAYER, slotAddress } from './layers.ts';
import { type MissFunctions, tlbBase } from './memory-access.ts';
import { RecordContext } from './record-context.ts';

export function defineCold(module: ModuleBuilder, handler: Handler, misses: MissFunctions): FunctionHandle {
  return module.define(['i32', 'i32'], 'i32', (code) => {
    const state = code.parameter('i32', 0);
    const record = code.parameter('i32', 1);
    const jump = (address: I64) => {
      code.store64(state, STATE.RIP, address);
      const left = i32.sub(i32.load(state, STATE.RUN_BUDGET), i32.load16U(record, RECORD.THROUGH));
      code.storeI32(state, STATE.RUN_BUDGET, left);
      code.return(i32.const(LAYER.BRANCHED));
    };
    const context = new RecordContext(
      {
        code,
        state,
        record,
        tlb: code.let(tlbBase(state)),
        misses,
        goCold: () => {
          throw new Error(`${handler.name} is cold already`);
        },
        leave: (reason) => code.return(reason),
        branchInPage: () => {
          jump(slotAddress(state, i32.load(record, RECORD.TARGET)));
        },
        jump,
      },
      handler,
    );
    handler.operation.emit(context);
    code.return(i32.const(0));
  });
}
