-- plate_balance: loads whose counts do not add up.
SELECT * FROM main.plate_balance
WHERE NOT is_balanced;
