/** Which of the chip's keys a guest's message asks for (AMD's firmware source; KEY_SEL of REPORT_REQ and KEY_REQ). */
import { KEY_SELECT } from '../../../abi/guest-message.ts';
import type { Firmware } from '../firmware.ts';
import type { GuestContext } from '../guest-context.ts';

/** `select`: KEY_SELECT. Undefined: INVALID_KEY. A masked chip key is the caller's business. */
export function endorsementKey(
  firmware: Firmware,
  context: GuestContext,
  select: number,
): 'vcek' | 'vlek' | undefined {
  const hasVlek = firmware.vlek !== undefined;
  switch (select) {
    case KEY_SELECT.AUTO:
      if (hasVlek) return 'vlek';
      return context.isVcekDisabled ? undefined : 'vcek';
    case KEY_SELECT.VCEK:
      return context.isVcekDisabled ? undefined : 'vcek';
    case KEY_SELECT.VLEK:
      return hasVlek ? 'vlek' : undefined;
    default:
      return undefined;
  }
}
