/**
 * The interpreter as a WebAssembly module, in two layers. `hot` is one loop over a `br_table` of the frequent handlers and makes
 * no calls at all: then the engine keeps the record and the budget in machine registers, and optimises it soon because it is
 * small. What it cannot do (a rare handler, an access that misses the TLB, a system record) it leaves to `run`, which calls
 * a function for that handler, made from the same description, and goes back.
 */
import { ModuleBuilder } from '../wasm/module.ts';
import { BUILT_IN, catalog, type Handler } from './catalog.ts';
import { defineCold } from './cold-handler.ts';
import { defineHot } from './hot-loop.ts';
import { defineMissFunctions, importSlowPath } from './memory-access.ts';
import { defineRun } from './run.ts';

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
  const cold = handlers.map((handler) =>
    needsCold(handler) ? defineCold(module, handler, misses) : undefined,
  );
  const frequent = handlers.filter((handler) => handler.hot);
  const hot = defineHot(module, frequent);
  const firstCold = BUILT_IN.length + frequent.length;
  module.export('run', defineRun(module, { hot, cold, firstCold, system: slow.system }));
  return { bytes: module.encode(), handlers: [...BUILT_IN, ...handlers.map(({ name }) => name), 'system'] };
}

/** A quiet handler works on registers alone; any other may touch memory. */
const needsCold = ({ quiet }: Handler): boolean => !quiet;
