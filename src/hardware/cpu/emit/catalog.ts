/** The interpreter's handlers: every operation of every group in every size and form, numbered. The decoder finds them by name. */
import { GROUPS } from '../semantics/groups.ts';
import type { Form, Operation, Size } from '../semantics/operation.ts';

export interface Handler {
  readonly name: string;
  readonly operation: Operation;
  readonly size: Size;
  readonly form: Form;
  readonly hot: boolean;
}

/** Handlers that belong to no operation, in this order from number 0 on. */
export const BUILT_IN = ['fetch', 'guard', 'system', 'stop'] as const;

export const handlerName = (operation: string, size: number, form: Form): string =>
  form === 'registers' ? `${operation}.${size}` : `${operation}.${size}.${form}`;

/** In the order of their numbers, which begin behind the built-in ones. */
export function catalog(): Handler[] {
  const handlers: Handler[] = [];
  for (const group of GROUPS) {
    for (const [name, operation] of Object.entries(group.operations)) {
      for (const size of operation.sizes) {
        for (const form of operation.forms ?? (['registers'] as const)) {
          const hot = operation.hot?.includes(size) ?? false;
          handlers.push({ name: handlerName(name, size, form), operation, size, form, hot });
        }
      }
    }
  }
  return handlers;
}
