/** The interpreter's handlers: every operation of every group in every size and form, numbered. The decoder finds them by name. */
import { GROUPS } from '../semantics/groups.ts';
import type { Form, Operation, Size } from '../semantics/operation.ts';

export interface Handler {
  readonly name: string;
  readonly operation: Operation;
  readonly size: Size;
  readonly form: Form;
  readonly hot: boolean;
  /** Leaves the arithmetic flags as they are. */
  readonly quiet: boolean;
}

/** Handlers that belong to no operation, in this order from number 0 on; `system` is the last of all. */
export const BUILT_IN = ['fetch', 'guard', 'stop'] as const;

const handlerName = (operation: string, size: number, form: Form): string =>
  form === 'registers' ? `${operation}.${size}` : `${operation}.${size}.${form}`;

/** In the order of their numbers, which begin behind the built-in ones: the hot ones first. */
export function catalog(): Handler[] {
  const handlers: Handler[] = [];
  for (const group of GROUPS) {
    for (const [name, operation] of Object.entries(group.operations)) {
      for (const size of operation.sizes) {
        for (const form of operation.forms ?? (['registers'] as const)) {
          const hot = operation.hot?.includes(size) ?? false;
          const handler = { name: handlerName(name, size, form), operation, size, form, hot, quiet: false };
          handlers.push(handler);
          const quiet = form === 'registers' && operation.quiet?.includes(size);
          if (quiet) handlers.push({ ...handler, name: `${handler.name} quiet`, quiet });
        }
      }
    }
  }
  return [...handlers.filter(({ hot }) => hot), ...handlers.filter(({ hot }) => !hot)];
}
