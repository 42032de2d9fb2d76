import { NotImplementedError } from '../../../base/errors.ts';
import type { GuestMessage } from '../guest-request.ts';
export function answerCpuid(_m: GuestMessage): Uint8Array {
  throw new NotImplementedError('guest message');
}
